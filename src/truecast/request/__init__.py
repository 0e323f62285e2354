"""ASK: every option of an export, declared once, and what an option means to the rest.

The keyword arguments of `truecast.export`, the options of the command line and the keys of a study's variants are made
from the fields of `Request`; what each may be, and what goes with what, is checked before any work.
"""

from truecast.request.options import RECOMMENDED, Kind, Option, Request, flag, option_of

__all__ = ["RECOMMENDED", "Kind", "Option", "Request", "flag", "option_of"]
