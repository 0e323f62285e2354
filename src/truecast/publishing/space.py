"""Room on the disk, looked at before work that would fill it."""

from __future__ import annotations

import shutil
from pathlib import Path

from truecast.errors import InputError

UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def require_space(folder: Path, size: int) -> None:
    """Raises InputError when the disk that holds `folder` has less than `size` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise InputError(
            f"The disk has {_told(free)} free, but the weights need {_told(size)}; "
            "free some space or choose a folder on another disk."
        )


def _told(size: int) -> str:
    for unit, name in UNITS:
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size} bytes"
