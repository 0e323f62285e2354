"""Products and lookups of weights in the operators of com.microsoft."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from truecast.dialects.expand import CONTRIB, NodeWriter
from truecast.weights.emission import Values, cut
from truecast.weights.forms import Blocks, Bnb4, Form


class ContribEmitter:
    """MatMulNBits, MatMulBnb4, FusedMatMul and GatherBlockQuantized."""

    merges_gates = True

    def placed(self, form: Form) -> Form:
        """See `Emitter`."""
        return form

    def product(self, write: NodeWriter, x: ir.Value, table: ir.Value, name: str) -> ir.Value:
        """See `Emitter`."""
        return write.op("FusedMatMul", [x, table], {"transB": 1}, domain=CONTRIB, name=name)

    def block_product(
        self,
        write: NodeWriter,
        form: Blocks,
        x: ir.Value,
        operands: Sequence[ir.Value | None],
        bias: ir.Value | None,
        accuracy_level: int,
        name: str,
    ) -> ir.Value:
        """See `Emitter`."""
        attributes = {
            "K": form.width,
            "N": form.rows,
            "bits": form.bits,
            "block_size": form.block,
            "accuracy_level": accuracy_level,
        }
        inputs: list[ir.Value | None] = [x, *operands]
        if bias is not None:
            inputs += [None] * (5 - len(inputs)) + [bias]
        while inputs[-1] is None:
            inputs.pop()
        return write.op("MatMulNBits", inputs, attributes, domain=CONTRIB, name=name)

    def bnb4_product(self, write: NodeWriter, form: Bnb4, x: ir.Value, values: Values, name: str) -> ir.Value:
        """See `Emitter`."""
        attributes = {
            "K": form.width,
            "N": form.binding.rows,
            "block_size": form.block,
            "quant_type": form.table,
            "training_mode": 0,
            "transB": 1,
        }
        codes, scales = form.binding.operands
        inputs = [x, values[codes.name], values[scales.name]]
        return write.op("MatMulBnb4", inputs, attributes, domain=CONTRIB, name=name)

    def block_lookup(
        self,
        write: NodeWriter,
        form: Blocks,
        ids: ir.Value,
        operands: Sequence[ir.Value | None],
        offsets: ir.Value | None,
        name: str,
    ) -> ir.Value:
        """See `Emitter`."""
        attributes = {"bits": form.bits, "block_size": form.block, "gather_axis": 0, "quantize_axis": 1}
        table, scales, zeros = operands
        inputs = [table, ids, scales] + ([zeros] if zeros is not None else [])
        whole = offsets is None and form.padded == form.width
        label = name if whole else f"{name}.codes"
        rows = write.op("GatherBlockQuantized", inputs, attributes, domain=CONTRIB, name=label)
        if offsets is None:
            return rows if whole else cut(write, rows, form, name)
        chosen = write.op("Gather", [offsets, ids], {"axis": 0})
        grouped = write.op("Reshape", [rows, write.ints(0, 0, form.groups, form.group)])
        moved = write.op("Add", [grouped, write.op("Unsqueeze", [chosen, write.ints(3)])])
        return write.op("Reshape", [moved, write.ints(0, 0, form.width)], name=name)

    def session_entries(self, accuracy_level: int) -> Mapping[str, str]:
        """See `Emitter`: the level is an attribute of every node."""
        return {}
