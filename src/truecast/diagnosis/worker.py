"""The process in which a model is run, so that a run that never ends can be ended; `apart` starts it.

It reads a pickled call from its standard input and writes pickled messages to its standard output: what is done next
with all that is known until then, and the result.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Makes the call that comes in, with a function that tells each step as its last argument."""
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what libraries print is no message
        call, arguments = pickle.load(sys.stdin.buffer)

        def tell(step: str, known: Any) -> None:
            pickle.dump((step, known), out)
            out.flush()

        _make(call, arguments, tell)


def _make(call: Callable[..., Any], arguments: tuple[Any, ...], tell: Callable[[str, Any], None]) -> None:
    tell("", call(*arguments, tell))


if __name__ == "__main__":
    main()
