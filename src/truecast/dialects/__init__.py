"""The operators of each target, as a table from leaf to lowering.

A leaf is a small piece of a model with a known meaning; a lowering says what it becomes. Lowerings are recognised by
what they compute: `recognise` probes the author's module with small random numbers and compares it with the operator's
own formula in float64, so nothing depends on a class name.
"""

from dataclasses import replace

from truecast.dialects.model import Dialect
from truecast.dialects.ort import ORT
from truecast.dialects.standard import STANDARD
from truecast.errors import InputError

DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in (ORT, STANDARD)}


def dialect(name: str, opset: int | None = None) -> Dialect:
    """The dialect called `name`, at another opset than its own if one is given; raises InputError with the names."""
    if name not in DIALECTS:
        raise InputError(f"There is no dialect {name!r}; choose one of {', '.join(sorted(DIALECTS))}.")
    found = DIALECTS[name]
    return found if opset is None else replace(found, opset=opset)
