"""What a stored tensor becomes when it is kept as it is, before any of it is read: in words and in bytes.

Data flow: a stored tensor and its use → its form (`forms`) → `Outlook`. The words and sizes are those of the operators
of com.microsoft, for a single weight: products that packing merges take the same bytes together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

import onnx_ir as ir

from truecast.checkpoint.model import StoredTensor
from truecast.weights.floats import word
from truecast.weights.forms import Blocks, Bnb4, Floats, Form, form_of
from truecast.weights.precision import Precision

AS_IS = Precision("as-is", ir.DataType.FLOAT, own=True)
FLOAT_BYTES = 4
"""Bytes of a float32, in which scales are multiplied out and floats computed."""
ORDER_BYTES = 8
"""Bytes of one entry of a column order, an int64."""


class Use(Enum):
    """What a graph does with a tensor; `TIED` is a table of tokens that is the output head too.

    `EXPERTS` are weights of experts, one or all of a layer's.
    """

    PRODUCT = "product"
    LOOKUP = "lookup"
    TIED = "tied"
    VALUE = "value"
    EXPERTS = "experts"


@dataclass(frozen=True)
class Outlook:
    """What becomes of a tensor.

    operators: those that read its codes, none for floats. slots: the width of codes and their block, or the float.
    remarks: what else there is to it. disk, memory: bytes in the file, and loaded.
    """

    operators: tuple[str, ...]
    slots: str
    remarks: tuple[str, ...]
    disk: int
    memory: int

    @property
    def words(self) -> str:
        """All of it in a few words."""
        return ", ".join([" ".join([" and ".join(self.operators), self.slots]).strip(), *self.remarks])


def outlook(tensor: StoredTensor, use: Use) -> Outlook:
    """What the export makes of a tensor at the precision `as-is`; reads no data."""
    if use is Use.VALUE:
        return _floats(tensor)
    if use is Use.EXPERTS:
        return _experts(tensor)
    form = form_of(tensor.name, tensor, AS_IS)
    if use is Use.PRODUCT:
        return _product(form)
    if use is Use.LOOKUP:
        return _lookup(form, tensor)
    return _tied(form, tensor)


def order_bytes(tensor: StoredTensor, seen: set[bytes]) -> int:
    """Bytes of the index that products read their inputs by, where no tensor before had the same order."""
    order = getattr(tensor.encoding, "order", None)
    if order is None or (key := order.tobytes()) in seen:
        return 0
    seen.add(key)
    return ORDER_BYTES * int(order.size)


def _floats(tensor: StoredTensor) -> Outlook:
    return Outlook((), "dense float32", (), FLOAT_BYTES * tensor.size, FLOAT_BYTES * tensor.size)


def _experts(tensor: StoredTensor) -> Outlook:
    """Codes with one float32 scale per block where QMoE can have them, else floats."""
    form = form_of(tensor.name, tensor.matrices or tensor, AS_IS)
    if isinstance(form, Blocks) and form.serves_experts:
        size = _block_memory(form)
        return Outlook(("QMoE",), f"{form.bits} bits, block {form.block}", (), size, size)
    if not isinstance(form, Floats) or form.scales or form.table.dtype == ir.DataType.FLOAT:
        return _floats(tensor)
    return replace(_floats(tensor), remarks=(f"{word(form.table.dtype)} on disk",), disk=form.table.nbytes)


def _product(form: Form) -> Outlook:
    disk = sum(operand.nbytes for operand in form.binding.operands)
    if isinstance(form, Blocks):
        offsets, order = ("offsets",) if form.offsets else (), ("columns reordered",) if form.order is not None else ()
        slots = f"{form.bits} bits, block {form.block}"
        return Outlook(("MatMulNBits",), slots, offsets + order, disk, _block_memory(form))
    if isinstance(form, Bnb4):
        return Outlook(("MatMulBnb4",), f"4 bits, block {form.block}", (), disk, disk)
    assert isinstance(form, Floats)  # nothing is quantized anew
    rows, width = form.table.shape
    stored = form.table.dtype
    remarks = () if stored == ir.DataType.FLOAT else (f"{word(stored)} on disk",)
    return Outlook((), "dense float32", remarks, disk, FLOAT_BYTES * rows * width)


def _lookup(form: Form, tensor: StoredTensor) -> Outlook:
    product = _product(form)
    if isinstance(form, Blocks) and form.serves_lookups:
        return replace(product, operators=("GatherBlockQuantized",))
    if not isinstance(form, Floats):
        return _floats(tensor)
    if form.scales or form.table.dtype == ir.DataType.FLOAT:
        return product
    return Outlook((), f"dense {word(form.table.dtype)}", (), product.disk, product.disk)


def _tied(form: Form, tensor: StoredTensor) -> Outlook:
    """One table for the lookup and the head where both can read it, else the two."""
    product, lookup = _product(form), _lookup(form, tensor)
    if lookup.operators:
        return replace(product, operators=lookup.operators + product.operators)
    if product == lookup:
        return product
    if isinstance(form, Floats):
        return replace(product, memory=product.memory + lookup.memory)
    remarks = (*product.remarks, f"{lookup.slots} for the lookup")
    return replace(product, remarks=remarks, disk=product.disk + lookup.disk, memory=product.memory + lookup.memory)


def _block_memory(form: Blocks) -> int:
    """Codes and zero points as they are, one float32 scale per block, one float32 offset per group."""
    zeros = form.zeros.nbytes if form.zeros is not None else 0
    offsets = form.groups if form.offsets else 0
    return form.codes.nbytes + zeros + FLOAT_BYTES * form.rows * (form.blocks + offsets)
