"""What the operating system offers: a lock that ends with its process, and an exchange of two folders in one step."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import IO

LOCKED_BYTE = 1 << 20
"""Where Windows locks a file: behind its text, since others cannot read what is locked."""
HERE = -100
"""AT_FDCWD: paths start at the working directory (linux/fcntl.h)."""
EXCHANGE = 2
"""RENAME_EXCHANGE (linux/fs.h) and RENAME_SWAP (macOS, sys/stdio.h)."""


def lock(file: IO[str]) -> None:
    """Locks a file until it is closed, or the process ends.

    Raises BlockingIOError where it is locked already, another OSError where the file system knows no locks.
    """
    if sys.platform == "win32":
        import msvcrt

        file.seek(LOCKED_BYTE)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(*error.args) from error
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def exchange(first: Path, second: Path) -> bool:
    """Swaps two folders of one disk in one step; False where the system or the file system cannot."""
    if sys.platform == "win32":
        return False
    library, paths = ctypes.CDLL(None), (os.fsencode(first), os.fsencode(second))
    if hasattr(library, "renameat2"):  # Linux with glibc
        return bool(library.renameat2(HERE, paths[0], HERE, paths[1], EXCHANGE) == 0)
    if hasattr(library, "renamex_np"):  # macOS
        return bool(library.renamex_np(*paths, EXCHANGE) == 0)
    return False
