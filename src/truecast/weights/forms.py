"""What one weight becomes in a graph: floats, blocks of codes, or codes into bitsandbytes' tables.

Data flow: a stored tensor and a precision → `form_of` → `Floats`, `Blocks` or `Bnb4`, each with the `Binding` that
makes its operands row by row. Codes and scales that a checkpoint brings are taken as they are, never computed anew.

A scale may be a product of several operands (`Factor`s of the encoding): the graph multiplies them, ONNX Runtime does
so once when it loads the graph, and the file stays as small as the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from truecast.checkpoint.bits import pack, packed_bytes
from truecast.checkpoint.encoding import Affine, Codebook, Factor, Factors, groups_of, integer_image, product
from truecast.checkpoint.model import Array, Reader, StoredTensor
from truecast.errors import InputError
from truecast.weights.binding import Binding, Operand, stacked
from truecast.weights.channels import Channels, channels
from truecast.weights.floats import dense_binding
from truecast.weights.precision import Precision
from truecast.weights.quantize import BLOCK_SIZES, blocks_per_row
from truecast.weights.quantizers import STREAMED
from truecast.weights.sources import all_finite, finite_rows

NF4 = (
    *(-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1),
)
FP4 = (0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4)
"""The positive half; the other half is its negative."""
BNB_TABLES = {0: np.array((*FP4, *(-value for value in FP4)), np.float32), 1: np.array(NF4, np.float32)}
"""MatMulBnb4's tables by its attribute quant_type (ONNX Runtime 1.31)."""
CHANNEL_BLOCK = 128
"""Block of a weight with one scale per row, which the operator's blocks repeat."""
FLOAT8 = ir.DataType.FLOAT8E4M3FN
EXPERT_BITS = (4, 8)
"""Bits that QMoE's kernels treat alike at every block size (ONNX Runtime 1.31); those of 2 round in their own way."""
CAST_FROM = (
    *(ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16),
    *(ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN),
)
"""What opset 21 casts to float32; float8e8m0 came with opset 24."""
SMALL_FLOATS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
"""Floats that a file keeps as they are; the graph casts them when it is loaded."""


@dataclass(frozen=True)
class Floats:
    """A float table [rows, width] as stored; `scales` are factors still to multiply, one of each `group` of columns."""

    binding: Binding
    table: Operand
    scales: tuple[Operand, ...] = ()
    groups: int = 1
    group: int = 0


@dataclass(frozen=True)
class Blocks:
    """Codes [rows, blocks, bytes], (code - zero) · scale + offset per block or group.

    `zeros` is None where every zero point is 2^(bits-1). `shift` scales are added to the offsets: what lies between
    that zero point and the encoding's own. `order` gives the weight's column for each column of the codes.
    """

    binding: Binding
    bits: int
    block: int
    group: int
    width: int
    codes: Operand
    scales: tuple[Operand, ...]
    zeros: Operand | None = None
    offsets: tuple[Operand, ...] = ()
    shift: int = 0
    order: Array | None = None

    @property
    def rows(self) -> int:
        """Outputs of the product, or entries of the table."""
        return self.binding.rows

    @property
    def blocks(self) -> int:
        """Blocks per row."""
        return blocks_per_row(self.width, self.block)

    @property
    def groups(self) -> int:
        """Groups per row."""
        return groups_of(self.width, self.group)

    @property
    def serves_lookups(self) -> bool:
        """Whether single rows can be decoded: their columns are in order, and only whole blocks have offsets."""
        return self.order is None and (self.width % self.block == 0 or not self.offsets)

    @property
    def padded(self) -> int:
        """Columns of the codes, the last block filled up."""
        return self.blocks * self.block

    @property
    def serves_experts(self) -> bool:
        """Whether QMoE can have the codes: no offsets, no order of the columns, and bits that its kernels know."""
        return self.bits in EXPERT_BITS and not self.offsets and self.order is None


@dataclass(frozen=True)
class Bnb4:
    """bitsandbytes' 4-bit codes, flat, the high bits of a byte first; `table` is MatMulBnb4's quant_type."""

    binding: Binding
    table: int
    block: int
    width: int


Form = Floats | Blocks | Bnb4 | Channels


def form_of(name: str, tensor: StoredTensor, precision: Precision, transposed: bool = False) -> Form:
    """The form of a matrix [out, in], or [in, out] when `transposed`."""
    if precision.channels:
        return channels(name, tensor, precision, transposed)
    if precision.bits is not None:
        return quantized(name, tensor, precision, transposed)
    if not precision.own:
        binding = dense_binding(name, tensor, precision.dtype)
        return Floats(binding, binding.operands[0])
    encoding = tensor.encoding
    if encoding is not None and transposed:
        raise InputError(
            f"{tensor.name} in {tensor.location.path} is quantized, but the model holds it as [in, out]; "
            "choose another --precision for it."
        )
    form: Form | None = None
    if isinstance(encoding, Codebook):
        form = _bnb4(name, tensor, encoding) or _float8(name, tensor, encoding)
        image = integer_image(encoding)
        form = form or (blocks_of(name, tensor, image) if image is not None else None)
    elif encoding is not None:
        form = blocks_of(name, tensor, encoding)
    return form or _as_stored(name, tensor)


def _as_stored(name: str, tensor: StoredTensor) -> Floats:
    """Floats in the checkpoint's own dtype."""
    stored = ir.DataType.from_numpy(tensor.dtype)
    binding = dense_binding(name, tensor, stored if stored in SMALL_FLOATS else ir.DataType.FLOAT)
    return Floats(binding, binding.operands[0])


# Blocks -----------------------------------------------------------------------------------------------------------


def block_size(group: int, width: int) -> int | None:
    """The largest block that the operators take and that divides a group; None when there is none."""
    if group >= width:  # one scale per row, which any block may repeat
        return next((size for size in (CHANNEL_BLOCK, 64, 32) if width % size == 0), min(BLOCK_SIZES))
    return next((size for size in reversed(BLOCK_SIZES) if group % size == 0), None)


def blocks_of(name: str, tensor: StoredTensor, affine: Affine) -> Blocks | None:
    """An affine encoding as blocks, its codes, scales and zero points unchanged; None where no block size fits."""
    rows, width = tensor.shape
    block = block_size(affine.group, width)
    if block is None or (affine.offsets and width % affine.group) or not _zero_fits(affine):
        return None
    blocks = blocks_per_row(width, block)
    zeros, shift = _zero_points(affine, groups_of(width, affine.group))
    codes = Operand(f"{name}.codes", ir.DataType.UINT8, (rows, blocks, block * affine.bits // 8))
    scales = _factor_operands(f"{name}.scales", affine.scales, rows)
    zeros_operand = Operand(f"{name}.zeros", ir.DataType.UINT8, (rows, packed_bytes(blocks, affine.bits)))
    offsets = _factor_operands(f"{name}.offsets", affine.offsets, rows)
    readers: list[Reader] = [
        _padded(affine.codes, blocks * block * affine.bits // 8),
        *(_finite(tensor, factor) for factor in affine.scales),
        *([_packed_zeros(tensor, zeros, affine, block, blocks)] if zeros is not None else []),
        *(_finite(tensor, factor) for factor in affine.offsets),
    ]
    kept = (zeros_operand,) if zeros is not None else ()

    def produce(start: int, stop: int) -> Sequence[Array]:
        return [read(start, stop) for read in readers]

    binding = Binding(
        operands=(codes, *scales, *kept, *offsets),
        sources=(tensor.name,),
        packing=f"{tensor.stored_as}, its own codes in {affine.bits} bits, block {block}",
        rows=rows,
        row_cost=width,
        produce=produce,
        own=True,
    )
    order = affine.order
    return Blocks(
        binding,
        affine.bits,
        block,
        affine.group,
        width,
        codes,
        scales,
        kept[0] if kept else None,
        offsets,
        shift,
        order,
    )


def _zero_fits(affine: Affine) -> bool:
    """Whether the operators can have the zero point: a code, or a number that the offsets take up."""
    return not isinstance(affine.zero, int) or bool(affine.offsets) or 0 <= affine.zero < 1 << affine.bits


def _zero_points(affine: Affine, groups: int) -> tuple[Reader | None, int]:
    """A reader of zero points where the operator's own does not do, and the scales that the offsets take up for it."""
    if not isinstance(affine.zero, int):
        return affine.zero, 0
    if affine.offsets:
        return None, affine.middle - affine.zero
    return (None if affine.zero == affine.middle else _constant(affine.zero, groups)), 0


def _factor_operands(name: str, factors: Factors, rows: int) -> tuple[Operand, ...]:
    names = [name] if len(factors) == 1 else [f"{name}.{index}" for index in range(len(factors))]
    return tuple(
        Operand(label, _stored(factor), (rows, factor.columns)) for label, factor in zip(names, factors, strict=True)
    )


def _stored(factor: Factor) -> ir.DataType:
    """The dtype in which a file holds a factor: its own where the graph's opset can cast it, else float32."""
    dtype = ir.DataType.from_numpy(factor.dtype)
    return dtype if dtype in CAST_FROM else ir.DataType.FLOAT


def _finite(tensor: StoredTensor, factor: Factor) -> Reader:
    """A factor's values in the dtype of its operand; raises InputError at the first NaN or infinity."""
    target = _stored(factor).numpy()

    def read(start: int, stop: int) -> Array:
        values = np.asarray(factor.read(start, stop))
        if not all_finite(values):
            raise _damaged(tensor, "scales that are NaN or infinity")
        return values.astype(target, copy=False)

    return read


def _numbers(tensor: StoredTensor, codebook: Codebook) -> Reader:
    """Codes of float8 values; raises InputError at the first that is no number."""

    def read(start: int, stop: int) -> Array:
        codes = codebook.codes(start, stop)
        if not np.isfinite(codebook.table[codes]).all():
            raise _damaged(tensor, "values that are NaN or infinity")
        return codes

    return read


def _damaged(tensor: StoredTensor, what: str) -> InputError:
    return InputError(
        f"{tensor.name!r} in {tensor.location.path} has {what}; the checkpoint is damaged, download or save it again."
    )


def _constant(value: int, columns: int) -> Reader:
    return lambda start, stop: np.full((stop - start, columns), value, np.uint8)


def _padded(codes: Reader, width: int) -> Reader:
    """Rows of bytes, filled up with zeros to `width`."""

    def read(start: int, stop: int) -> Array:
        rows = codes(start, stop)
        return rows if rows.shape[1] == width else np.pad(rows, ((0, 0), (0, width - rows.shape[1])))

    return read


def _packed_zeros(tensor: StoredTensor, zeros: Reader, affine: Affine, block: int, blocks: int) -> Reader:
    """Zero points as the operators want them: packed along the blocks, every row on bytes of its own."""

    def read(start: int, stop: int) -> Array:
        per_group = zeros(start, stop)
        if per_group.size and per_group.max() >> affine.bits:
            raise _damaged(tensor, f"zero points that are no codes of {affine.bits} bits")
        repeats = max(1, -(-blocks // per_group.shape[1]) if per_group.shape[1] == 1 else affine.group // block)
        return pack(np.repeat(per_group, repeats, axis=1)[:, :blocks], affine.bits)

    return read


def quantized(name: str, tensor: StoredTensor, precision: Precision, transposed: bool = False) -> Blocks:
    """Codes and scales made here, by the precision's method, along `in`."""
    bits, block, method = precision.bits, precision.block, STREAMED[precision.method]
    assert bits is not None
    rows, width = tensor.shape[::-1] if transposed else tensor.shape
    if method.offsets and width % block:
        raise InputError(
            f"--method {precision.method} wants rows of whole blocks, and {tensor.name} has rows of {width}, no "
            f"multiple of {block}; choose another --block-size or --method."
        )
    blocks, dtype = blocks_per_row(width, block), precision.dtype
    codes = Operand(f"{name}.codes", ir.DataType.UINT8, (rows, blocks, block * bits // 8))
    scales = Operand(f"{name}.scales", dtype, (rows, blocks))
    zeros = Operand(f"{name}.zeros", ir.DataType.UINT8, (rows, packed_bytes(blocks, bits))) if method.zeros else None
    offsets = (Operand(f"{name}.offsets", dtype, (rows, blocks)),) if method.offsets else ()

    def produce(start: int, stop: int) -> Sequence[Array]:
        values = (
            np.ascontiguousarray(finite_rows(tensor, 0, width)[:, start:stop].T)
            if transposed
            else finite_rows(tensor, start, stop)
        )
        made = method.quantize(values, bits, block)
        floats = [None if part is None else part.astype(dtype.numpy()) for part in (made.scales, made.offsets)]
        return [part for part in (made.codes, floats[0], made.zeros, floats[1]) if part is not None]

    operands = (codes, scales, *([zeros] if zeros is not None else []), *offsets)
    packing = f"int{bits} block {block}, {method.words}"
    binding = Binding(operands, (tensor.name,), packing, rows, width, produce)
    return Blocks(binding, bits, block, block, width, codes, (scales,), zeros, offsets)


def alike(forms: Sequence[Form]) -> bool:
    """Whether weights can lie one below the other in one product."""
    blocks = [form for form in forms if isinstance(form, Blocks)]
    if len(blocks) < len(forms):
        return False
    first = blocks[0]
    return all(_shape(form) == _shape(first) for form in blocks)


def _shape(form: Blocks) -> tuple[object, ...]:
    operands = tuple((operand.dtype, operand.shape[1:]) for operand in form.binding.operands)
    counts = (form.shift, len(form.scales), form.zeros is None, len(form.offsets))
    order = None if form.order is None else form.order.tobytes()
    return form.bits, form.block, form.group, form.width, counts, operands, order


def stack_blocks(name: str, forms: Sequence[Blocks]) -> Blocks:
    """Several weights of one input as one, `alike` in everything but the number of rows."""
    first = forms[0]
    names = [name + operand.name[_stem(first) :] for operand in first.binding.operands]
    binding = stacked([form.binding for form in forms], names)
    operands = iter(binding.operands)
    return replace(
        first,
        binding=binding,
        codes=next(operands),
        scales=tuple(next(operands) for _ in first.scales),
        zeros=next(operands) if first.zeros else None,
        offsets=tuple(next(operands) for _ in first.offsets),
    )


def _stem(form: Blocks) -> int:
    return len(form.codes.name) - len(".codes")


# Codebooks ----------------------------------------------------------------------------------------------------------


def _bnb4(name: str, tensor: StoredTensor, codebook: Codebook) -> Bnb4 | None:
    """bitsandbytes' codes in its own order of nibbles, with one flat list of scales."""
    rows, width = tensor.shape
    kind = next((kind for kind, table in BNB_TABLES.items() if _is_table(codebook, table)), None)
    block = next((size for size in reversed(BLOCK_SIZES) if codebook.group % size == 0), None)
    if kind is None or block is None or width % codebook.group or width % 2:
        return None
    repeats, groups = codebook.group // block, groups_of(width, codebook.group)
    codes = Operand(f"{name}.codes", ir.DataType.UINT8, (rows * width // 2,))
    scales = Operand(f"{name}.scales", ir.DataType.FLOAT, (rows * width // block,))

    def produce(start: int, stop: int) -> Sequence[Array]:
        low_first = codebook.codes(start, stop)
        scale = product(codebook.scales, groups, start, stop)
        if not np.isfinite(scale).all():
            raise _damaged(tensor, "scales that are NaN or infinity")
        return [low_first << np.uint8(4) | low_first >> np.uint8(4), np.repeat(scale, repeats, axis=1)]

    packing = f"{tensor.stored_as}, its own codes, block {block}"
    return Bnb4(Binding((codes, scales), (tensor.name,), packing, rows, width, produce, own=True), kind, block, width)


def _is_table(codebook: Codebook, table: Array) -> bool:
    return np.array_equal(codebook.table, table)


def _float8(name: str, tensor: StoredTensor, codebook: Codebook) -> Floats | None:
    """Float8 bytes as they are; the graph casts and scales them when it is loaded."""
    rows, width = tensor.shape
    every = np.arange(256, dtype=np.uint8).view(FLOAT8.numpy()).astype(np.float32)
    if len(codebook.table) != len(every) or not np.array_equal(codebook.table, every, equal_nan=True):
        return None
    table = Operand(name, FLOAT8, (rows, width))
    scales = _factor_operands(f"{name}.scales", codebook.scales, rows)
    readers = [_numbers(tensor, codebook), *(_finite(tensor, factor) for factor in codebook.scales)]

    def produce(start: int, stop: int) -> Sequence[Array]:
        return [read(start, stop) for read in readers]

    packing = f"{tensor.stored_as}, its own bytes"
    binding = Binding((table, *scales), (tensor.name,), packing, rows, width, produce, own=True)
    return Floats(binding, table, scales, groups_of(width, codebook.group), codebook.group)
