"""TC5xx: weights stored twice, blown up at load, missing, or where other loaders refuse them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from truecast.diagnosis.evidence import Evidence, label
from truecast.diagnosis.mending import merges, removals
from truecast.diagnosis.model import Seen, seen
from truecast.diagnosis.rules.rule import ERROR, WARNING, Rule
from truecast.diagnosis.stored import CHUNK_BYTES, SMALLEST_BYTES, Weight

INLINE_LIMIT = 3 << 29
"""Bytes of weights in the file itself from which exporters use external data: 1.5 GiB, of protobuf's 2."""
NOTICED_SHARE = 0.01
"""Share of all weights below which copies are by chance: biases of zeros, norms of ones."""
BLOWN_BYTES = 1 << 20
BLOWN_FACTOR = 8
"""A constant expression is a blow-up when its result has this many times the bytes that it is made from."""
GROWING = ("ConstantOfShape", "Expand", "Tile", "Range", "EyeLike", "OneHot", "Pad", "Resize")
"""Operators whose result can be much larger than their inputs."""
TABLE_READERS = ("Gather",)
PRODUCT_READERS = ("MatMul", "Gemm", "FusedMatMul")


def duplicates(evidence: Evidence) -> Seen | None:
    """Weights with the same dtype, shape and bytes under different names."""
    groups = evidence.equal_weights
    wasted = sum(group[0].nbytes * (len(group) - 1) for group in groups)
    if wasted < NOTICED_SHARE * sum(weight.nbytes for weight in evidence.weights):
        return None
    return seen((_equals(group) for group in groups), "stored more than once", nbytes=wasted)


def _equals(group: Sequence[Weight]) -> str:
    more = f" and {len(group) - 2} more" if len(group) > 2 else ""
    return f"{group[0].name} = {group[1].name}{more}"


def transposed_twin(evidence: Evidence) -> Seen | None:
    """Tied weights, of which the embedding keeps one layout and the head the other."""
    pairs = [(table, head) for table, head in _candidates(evidence) if _is_transpose(table, head)]
    return seen(
        (f"{a.name} = {b.name} transposed" for a, b in pairs), "stored twice", nbytes=sum(b.nbytes for _, b in pairs)
    )


def _candidates(evidence: Evidence) -> Iterator[tuple[Weight, Weight]]:
    matrices = [
        w
        for w in evidence.weights
        if len(w.shape) == 2 and w.nbytes >= SMALLEST_BYTES and w.readable and w.dtype.bitwidth >= 8
    ]
    tables = [w for w in matrices if any(n.op_type in TABLE_READERS for n in w.value.consumers())]
    for table in tables:
        for other in matrices:
            if other is not table and other.shape == table.shape[::-1] and other.dtype == table.dtype:
                yield table, other


def _is_transpose(table: Weight, head: Weight) -> bool:
    """Whether a row of one is a column of the other, at both ends, and then all of it."""
    if not all(_row(table, i) == _column(head, i) for i in (0, table.shape[0] - 1)):
        return False
    return bool(np.array_equal(table.array(), head.array().T))


def _row(weight: Weight, index: int) -> bytes:
    width = weight.shape[1] * weight.dtype.bitwidth // 8
    return weight.read(index * width, width)


def _column(weight: Weight, index: int) -> bytes:
    size, rows, columns = weight.dtype.bitwidth // 8, *weight.shape
    step = max(CHUNK_BYTES // (columns * size), 1)
    parts = []
    for start in range(0, rows, step):
        block = np.frombuffer(weight.read(start * columns * size, step * columns * size), f"V{size}")
        parts.append(block.reshape(-1, columns)[:, index].tobytes())
    return b"".join(parts)


def tied_by_transpose(evidence: Evidence) -> Seen | None:
    """A table that is also a product's weight through a Transpose, which the runtime folds into a second copy."""
    found = [
        (weight, node) for weight in evidence.weights if weight.nbytes >= SMALLEST_BYTES for node in _transposes(weight)
    ]
    return seen(
        (f"{weight.name} through {label(node)}" for weight, node in found),
        nbytes=sum(weight.nbytes for weight, _ in found),
    )


def _transposes(weight: Weight) -> Iterator[ir.Node]:
    readers = weight.value.consumers()
    if any(node.op_type in TABLE_READERS for node in readers):
        for node in readers:
            if node.op_type == "Transpose" and any(n.op_type in PRODUCT_READERS for n in node.outputs[0].consumers()):
                yield node


def escapes(evidence: Evidence) -> Seen | None:
    """External data outside the model's folder; it is not opened."""
    return seen(sorted({f"{data.location}" for data in evidence.external if not data.inside}))


def missing(evidence: Evidence) -> Seen | None:
    """External data that is not there, too short, or shorter than its tensor."""
    sizes = {weight.name: weight.nbytes for weight in evidence.weights}
    faults = []
    for data in evidence.external:
        if not data.inside:
            continue
        need = sizes.get(data.name, 0)
        if not data.path.is_file():
            faults.append(f"{data.name} ({data.location} does not exist)")
        elif data.length is not None and data.length != need:
            faults.append(f"{data.name} (it needs {need} bytes and {data.length} are given)")
        elif data.offset + need > data.path.stat().st_size:
            faults.append(f"{data.name} (bytes up to {data.offset + need} of {data.path.stat().st_size})")
    return seen(faults)


def linked(evidence: Evidence) -> Seen | None:
    """Links, which ONNX Runtime follows inside the folder and other loaders refuse."""
    files = {data.path for data in evidence.external if data.inside and data.path.is_file()}
    return seen(
        f"{path.name} ({'symbolic link' if path.is_symlink() else 'hard link'})"
        for path in sorted(files)
        if path.is_symlink() or path.stat().st_nlink > 1
    )


def inline_limit(evidence: Evidence) -> Seen | None:
    """A file close to protobuf's limit of 2 GiB."""
    inline = sum(w.nbytes for w in evidence.weights if w.source is None and not isinstance(w.tensor, ir.LazyTensor))
    return (
        Seen((evidence.path.name,), 1, "weights in the file itself", nbytes=inline) if inline > INLINE_LIMIT else None
    )


def unused(evidence: Evidence) -> Seen | None:
    """Weights that no node reads."""
    idle = evidence.idle_weights
    return seen((weight.name for weight in idle), nbytes=sum(weight.nbytes for weight in idle))


def blows_up(evidence: Evidence) -> Seen | None:
    """Constants that the runtime computes at load and keeps, much larger than what is stored."""
    blown = [(node, size) for node in evidence.nodes if (size := _blown_bytes(node, evidence))]
    return seen((label(node) for node, _ in blown), "held in memory after load", nbytes=sum(size for _, size in blown))


def _blown_bytes(node: ir.Node, evidence: Evidence) -> int:
    if node.op_type not in GROWING or node.outputs[0] not in evidence.constants:
        return 0
    dims, dtype = evidence.dims(node.outputs[0]), evidence.types.get(node.outputs[0])
    if not dims or dtype is None or not all(isinstance(dim, int) for dim in dims):
        return 0
    size = int(np.prod([dim for dim in dims if isinstance(dim, int)], dtype=np.int64)) * dtype.bitwidth // 8
    held = sum(value.const_value.nbytes for value in node.inputs if value is not None and value.const_value is not None)
    return size if size >= BLOWN_BYTES and size > BLOWN_FACTOR * held else 0


NO_WEIGHTS = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)
"""What positions, types of tokens and masks are kept in, which may be zero throughout."""


def repeated_rows(evidence: Evidence) -> Seen | None:
    """A weight of zeros alone: a constant that was folded, or a weight that was never attached."""
    empty = [
        w
        for w in evidence.weights
        if len(w.shape) >= 2
        and w.nbytes >= SMALLEST_BYTES
        and w.dtype not in NO_WEIGHTS
        and w.readable
        and not any(w.sample())
    ]
    return seen((weight.name for weight in empty), nbytes=sum(weight.nbytes for weight in empty))


RULES = (
    Rule(
        "TC501",
        WARNING,
        "The same weight stored more than once",
        "Disk and memory for each copy.",
        "Let every user refer to one initializer.",
        duplicates,
        mend=merges,
    ),
    Rule(
        "TC502",
        WARNING,
        "Tied weights stored twice, one of them transposed",
        "The largest matrix of the model twice, on disk and in memory.",
        "Keep one and read it by FusedMatMul with transB; by Gemm only where quantize_dynamic does not follow.",
        transposed_twin,
    ),
    Rule(
        "TC503",
        WARNING,
        "A tied weight behind a Transpose",
        "The runtime folds the transpose into a private copy at load, and quantizers skip the product.",
        "Read the table by FusedMatMul with transB, or by Gemm where quantize_dynamic does not follow, or quantize it "
        "as MatMulNBits.",
        tied_by_transpose,
    ),
    Rule(
        "TC504",
        ERROR,
        "External data outside the model's folder",
        "ONNX Runtime refuses the model; another loader would read a file that is none of the model's business.",
        "Save the model again with its data in its own folder; do not load it if you did not make it.",
        escapes,
    ),
    Rule(
        "TC505",
        ERROR,
        "External data is missing or too short",
        "The model does not load.",
        "Copy the data file whole beside the model; download it again.",
        missing,
    ),
    Rule(
        "TC506",
        WARNING,
        "External data behind a link",
        "ONNX Runtime loads it; onnx.load, onnx.checker and onnx-ir refuse it.",
        "Copy the file in the link's place.",
        linked,
    ),
    Rule(
        "TC507",
        WARNING,
        "The weights in the file come near protobuf's limit",
        "Tools that add to the model fail at 2 GiB.",
        "Save the weights as external data.",
        inline_limit,
    ),
    Rule(
        "TC508",
        WARNING,
        "Weights that nothing reads",
        "Disk, and memory while loading.",
        "Remove them.",
        unused,
        mend=removals,
    ),
    Rule(
        "TC509",
        WARNING,
        "Constants that grow when they are folded",
        "Memory and load time for values that a few bytes describe.",
        "Set optimization.constant_folding_max_output_size_in_bytes=1048576, or compute it from the input's shape.",
        blows_up,
    ),
    Rule(
        "TC510",
        WARNING,
        "Weights that are all zero",
        "Either a constant that was folded into the file, or a weight that was never attached: then outputs are wrong.",
        "Compare the weight with its source; rebuild the constant in the graph.",
        repeated_rows,
    ),
)
