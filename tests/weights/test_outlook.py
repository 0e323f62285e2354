"""What is foretold of an export at the precision as-is is what the export then makes, in operators and in bytes."""

from __future__ import annotations

from pathlib import Path

import gguf
import onnx_ir as ir
import pytest

from tests.checkpoint.gguf.cases import BY_NAME as GGUF_CASES
from truecast.artifact import read_manifest
from truecast.checkpoint import Checkpoint, open_checkpoint
from truecast.exporting import export
from truecast.inspection.costs import weight_bytes
from truecast.inspection.storage import outlooks, parameters
from truecast.request import Request
from truecast.weights.packing import COLUMN_ORDER

DATA = Path(__file__).parents[1] / "data"
MERGED = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}
BITS = ("bits", "expert_weight_bits")
CASES = (
    *("gptqmodel-act-order", "auto-round-4bit-head", "bitsandbytes-fp4", "compressed-tensors-floats"),
    *("hqq-axis1", "torchao-intx", "gguf/Q4_1", "gpt-oss-mxfp4"),
)


@pytest.fixture(scope="module", params=CASES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name: str = request.param
    if not name.startswith("gguf/"):
        return DATA / name
    file = tmp_path_factory.mktemp("gguf") / "model.gguf"
    GGUF_CASES["gemma3"].write(file, kind=gguf.GGMLQuantizationType[name.removeprefix("gguf/")])
    return file


def test_operators_and_bytes_are_as_foretold(source: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(source)
    folder = export(source, tmp_path / "out", Request(precision="as-is", verify=False))
    model = ir.load(folder / "model.onnx")
    assert operators(model) == foretold(checkpoint)
    held = sum(
        model.graph.initializers[name].const_value.nbytes  # type: ignore[union-attr]
        for weight in read_manifest(folder).weights
        if weight.sources or weight.packing == COLUMN_ORDER
        for name in weight.initializers
    )
    assert weight_bytes(checkpoint, "as-is").disk == held


def operators(model: ir.Model) -> set[str]:
    """Operators of codes with their slots and blocks."""
    found = set()
    for node in model.graph:
        size = node.attributes.get("block_size")
        if size is not None:
            bits = next((node.attributes[name].as_int() for name in BITS if name in node.attributes), 4)
            found.add(f"{node.op_type} {bits} bits, block {size.as_int()}")
    return found


def foretold(checkpoint: Checkpoint) -> set[str]:
    becoming = outlooks(parameters(checkpoint)).values()
    return {f"{operator} {future.slots}" for future in becoming for operator in future.operators}
