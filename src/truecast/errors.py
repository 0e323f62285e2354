"""What can go wrong, in the user's words.

Three kinds, because each sends the user somewhere else: the input is at fault, the proof did not hold, or the run was
interrupted by the machine. Every message is one sentence or two: what, where, and what to do next.
"""

from __future__ import annotations

from pathlib import Path


class TruecastError(Exception):
    """Base of every error that truecast raises on purpose; `exit_status` is the command line's exit status."""

    exit_status = 1


class InputError(TruecastError):
    """The user's input cannot be used: a path, a file's content, an option. Nothing was written."""

    exit_status = 2


class ProofError(TruecastError):
    """A proof or a check did not hold; the artifact was not published, and is in the folder `kept`, if anywhere."""

    exit_status = 1

    def __init__(self, message: str, kept: Path | None = None) -> None:
        super().__init__(message)
        self.kept = kept
