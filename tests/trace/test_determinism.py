"""The same checkpoint gives the same bytes in every process, whatever the order in which Python walks its sets."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

from tests.trace.conftest import Exported

EXPORT = """
import sys
from truecast.exporting import export
from truecast.request import Request
export(sys.argv[1], sys.argv[2], Request(precision="fp32", verify=False))
"""


def start(source: Path, out: Path, seed: int) -> subprocess.Popen[bytes]:
    """An export in a process of its own, with its own order of sets."""
    return subprocess.Popen(
        [sys.executable, "-c", EXPORT, str(source), str(out)],
        env=os.environ | {"PYTHONHASHSEED": str(seed)},
        stderr=subprocess.PIPE,
    )


def digests(folder: Path) -> dict[str, str]:
    return {file.name: sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_two_processes_with_other_hash_seeds_give_the_same_files(exported: Exported, tmp_path: Path) -> None:
    here = exported("gemma3_text")
    processes = [start(here.with_name("checkpoint"), tmp_path / str(seed), seed) for seed in (1, 2)]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()
    assert digests(tmp_path / "1") == digests(tmp_path / "2") == digests(here)
    assert {"model.onnx", "model.onnx.data", "truecast.json", "config.json"} <= digests(here).keys()
