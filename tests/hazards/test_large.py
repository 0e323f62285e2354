"""Large models: looked at in little memory, because their weights stay where they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from tests.hazards.building import WIDTH, layer, linear, model, save, tensor
from truecast.diagnosis import diagnose
from truecast.diagnosis.rules import weights as rules

LAYERS, WIDE = 32, 4096
LAYER_BYTES = 4 * WIDE * WIDE
MEMORY_BYTES = 600 << 20
"""The libraries take 200 MiB of it; the weights would be 2 GiB."""


def large(folder: Path) -> Path:
    """2 GiB of weights in a sparse file, each matrix told from the others by its first bytes."""
    made = model(
        [layer(f"h{index}" if index else "x", f"h{index + 1}", f"w{index}") for index in range(LAYERS)],
        [tensor("x", ["batch", WIDE])],
        [tensor(f"h{LAYERS}", ["batch", WIDE])],
    )
    with (folder / "model.onnx.data").open("wb") as file:
        for index in range(LAYERS):
            stored = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[WIDE, WIDE])
            stored.data_location = TensorProto.EXTERNAL
            places = {"location": "model.onnx.data", "offset": index * LAYER_BYTES, "length": LAYER_BYTES}
            stored.external_data.extend(
                helper.onnx.StringStringEntryProto(key=k, value=str(v)) for k, v in places.items()
            )
            made.graph.initializer.append(stored)
            file.seek(index * LAYER_BYTES)
            file.write(f"layer {index:6}".encode())
        file.truncate(LAYERS * LAYER_BYTES)
    return save(made, folder)


def test_two_gigabytes_take_no_memory(tmp_path: Path) -> None:
    path = large(tmp_path)
    code = f"from truecast import diagnose; print(diagnose({str(path)!r}).codes); "
    # not ru_maxrss, which a child process begins with at its parent's size
    code += "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    codes, kilobytes = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert codes == "()"
    assert int(kilobytes) * 1024 < MEMORY_BYTES


def test_equal_weights_of_it_are_compared_whole(tmp_path: Path) -> None:
    """Two matrices that agree in every sample and differ elsewhere are not the same weight."""
    path = large(tmp_path)
    with (tmp_path / "model.onnx.data").open("r+b") as file:
        file.seek(LAYER_BYTES)
        file.write(b"layer      0")
    assert diagnose(path).codes == ("TC501",)
    with (tmp_path / "model.onnx.data").open("r+b") as file:
        file.seek(LAYER_BYTES + 100_000)
        file.write(b"another byte")
    assert diagnose(path).codes == ()


def test_weights_near_protobufs_limit_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(linear(), tmp_path)
    monkeypatch.setattr(rules, "INLINE_LIMIT", 4 * WIDTH * WIDTH)
    assert diagnose(path).codes == ()
    monkeypatch.setattr(rules, "INLINE_LIMIT", 4 * WIDTH * WIDTH - 1)
    assert diagnose(path).codes == ("TC507",)
