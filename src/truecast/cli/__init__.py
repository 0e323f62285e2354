"""The command line: one thin function per verb over `truecast.api`; `--help` imports nothing heavy."""

from truecast.cli.main import main

__all__ = ["main"]
