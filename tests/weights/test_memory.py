"""Weights stream: writing a large weight takes a few chunks of memory, not the weight."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

ROWS, WIDTH = 65_536, 1024
NBYTES = 4 * ROWS * WIDTH
"""256 MiB of float32 zeros, which a sparse file keeps on no disk."""
LARGEST_GROWTH = 112 << 20
"""Bytes on two cores: three chunks under way, each of 16 MiB of source weights and a copy or two (seen: 46 to 64)."""

WRITE = """
import os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # chunks under way follow the number of cores
from pathlib import Path
import onnx_ir as ir
from truecast.checkpoint import open_checkpoint
from truecast.weights.floats import dense_binding
from truecast.weights.forms import quantized
from truecast.weights.precision import Precision
from truecast.weights.writer import write_weights

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10

folder, form = Path(sys.argv[1]), sys.argv[2]
tensor = open_checkpoint(folder).tensors["w"]
forms = {
    "int4": lambda: quantized("w", tensor, Precision("int4", ir.DataType.FLOAT, 4, 32), transposed=False).binding,
    "fp32": lambda: dense_binding("w", tensor, ir.DataType.FLOAT),
}
before = peak()
write_weights(folder / "data", [forms[form]()])
print(peak() - before)
"""


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one large tensor of zeros."""
    folder = tmp_path_factory.mktemp("sparse")
    header = json.dumps({"w": {"dtype": "F32", "shape": [ROWS, WIDTH], "data_offsets": [0, NBYTES]}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + NBYTES)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.mark.parametrize("form", ["int4", "fp32"])
def test_writing_a_large_weight_takes_a_few_chunks_of_memory(form: str, sparse: Path) -> None:
    command = [sys.executable, "-c", WRITE, str(sparse), form]
    growth = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert growth < LARGEST_GROWTH < NBYTES
