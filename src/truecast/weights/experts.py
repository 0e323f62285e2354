"""Experts: the stacked weights of a layer as operands of MoE and QMoE, or of products with every expert.

Data flow: `truecast::Experts` names the weights of one module → each as one matrix [experts · out, in] in the order of
the operator's rows (`as_matrix`) → its form, as for any matrix (`forms`) → operands of three dimensions → MoE where
both are floats, QMoE where both are blocks of codes; anything between the two becomes floats.

QMoE has no products of 8-bit codes with float activations on the CPU (ONNX Runtime 1.31, operator schema). Where they
are asked for, the graph decodes such codes once, when it is loaded, and hands MoE the floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from truecast.checkpoint.bits import BYTE_BITS, pack, unpack
from truecast.checkpoint.model import Array, Reader, StoredTensor
from truecast.checkpoint.stacks import reordered, taking_turns
from truecast.dialects.expand import CONTRIB, NodeWriter, finish
from truecast.errors import InputError
from truecast.weights.binding import Operand
from truecast.weights.floats import dense_binding
from truecast.weights.forms import Blocks, Floats, Form, form_of
from truecast.weights.precision import Precision
from truecast.weights.quantize import BLOCK_SIZES
from truecast.weights.standard import code_at

if TYPE_CHECKING:
    from truecast.weights.packing import Packer

CARRIED = ("k", "activation_type", "activation_alpha", "activation_beta", "swiglu_limit")
"""Attributes of the abstract operator that are MoE's and QMoE's as well."""


@dataclass(frozen=True)
class Stack:
    """One weight of the experts: `matrix` [experts · out, in] in the order of the operator's rows."""

    name: str
    matrix: StoredTensor
    experts: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """[experts, out, in]."""
        rows, width = self.matrix.shape
        return self.experts, rows // self.experts, width


def as_matrix(tensor: StoredTensor, transposed: bool, halves: bool) -> StoredTensor:
    """Experts [experts, out, in], or [experts, in, out] where `transposed`, as a matrix [experts · out, in].

    With `halves`, the first and the second half of an expert's rows take turns: first 0, second 0, first 1, …
    """
    experts = tensor.shape[0]
    outputs, width = tensor.shape[:0:-1] if transposed else tensor.shape[1:]
    matrix = tensor.matrices or replace(tensor, reader=_flat(tensor, transposed, outputs), verbatim=False)
    matrix = replace(matrix, shape=(experts * outputs, width), matrices=None)
    if not halves:
        return matrix
    return reordered(matrix, lambda read: taking_turns(read, outputs))


def _flat(tensor: StoredTensor, transposed: bool, outputs: int) -> Reader:
    """Rows of the matrices of all experts; whole experts are read where their axes have to be swapped."""

    def read(start: int, stop: int) -> Array:
        first, last = start // outputs, -(-stop // outputs)
        whole = tensor.rows(first, last)
        if transposed:
            whole = whole.swapaxes(1, 2)
        flat: Array = whole.reshape(-1, whole.shape[2])
        return flat[start - first * outputs : stop - first * outputs]

    return read


# Forms ------------------------------------------------------------------------------------------------------------


def forms_of(stacks: Sequence[Stack], precision: Precision) -> list[Form]:
    """The forms of a module's weights: all blocks of codes with one block size, or all floats [experts, out, in]."""
    if precision.channels:
        raise InputError(
            f"--precision {precision.name} makes products of integers, which no operator does for experts "
            f"({stacks[0].name}); choose int8 or int4."
        )
    if precision.dtype == ir.DataType.FLOAT16:
        raise InputError(
            f"--precision {precision.name} rounds the scores that choose experts ({stacks[0].name}), so that near ties "
            "choose others and no limit could tell that from an error; choose fp32, int8 or int4."
        )
    if precision.bits is not None and precision.method == "hqq":
        raise InputError(
            f"--method hqq adds an offset to every block, which QMoE cannot do for {stacks[0].name}; "
            "choose rtn or k-quant."
        )
    chosen = precision
    if precision.bits is not None:
        sizes = [size for size in BLOCK_SIZES if size <= precision.block and _divides(size, stacks)]
        chosen = replace(precision, block=max(sizes)) if sizes else replace(precision, bits=None)
    found = [form_of(stack.name, stack.matrix, chosen) for stack in stacks]
    blocks = [form for form in found if isinstance(form, Blocks) and form.serves_experts]
    alike = len(blocks) == len(stacks) and len({form.bits for form in blocks}) == 1
    if alike and _divides(size := min(form.block for form in blocks), stacks):
        return [_coded(form, stack, size, precision.dtype) for form, stack in zip(blocks, stacks, strict=True)]
    return [_floats(form, stack, precision) for form, stack in zip(found, stacks, strict=True)]


def _divides(size: int, stacks: Sequence[Stack]) -> bool:
    return all(stack.shape[2] % size == 0 for stack in stacks)


def _floats(form: Form, stack: Stack, precision: Precision) -> Floats:
    """Floats as they are stored where nothing else has to be done to them, else decoded."""
    if isinstance(form, Floats) and not form.scales:
        binding = form.binding
    else:
        binding = dense_binding(stack.name, stack.matrix, precision.dtype)
    table = replace(binding.operands[0], shape=stack.shape)
    return Floats(replace(binding, operands=(table,)), table)


def _coded(form: Blocks, stack: Stack, block: int, dtype: ir.DataType) -> Blocks:
    """Blocks with operands as QMoE wants them: one scale for each block, [experts, out, …]."""
    experts, outputs, width = stack.shape
    groups, blocks = form.groups, width // block
    codes = replace(form.codes, shape=(experts, outputs, width * form.bits // 8))
    scales = Operand(f"{stack.name}.scales", dtype, (experts, outputs, blocks))
    zeros = None
    if form.zeros is not None:
        zeros = replace(form.zeros, shape=(experts, outputs, -(-blocks * form.bits // 8)))
    names = [operand.name for operand in form.binding.operands]
    factors = [names.index(operand.name) for operand in form.scales]
    produce = form.binding.produce

    def coded(start: int, stop: int) -> Sequence[Array]:
        made = produce(start, stop)
        scale = np.ones((stop - start, groups), np.float32)
        for index in factors:
            scale *= np.repeat(made[index].astype(np.float32), groups // made[index].shape[1], axis=1)
        result = [made[0], np.repeat(scale, -(-blocks // groups), axis=1)[:, :blocks].astype(dtype.numpy())]
        if form.zeros is not None:
            points = unpack(made[names.index(form.zeros.name)], form.bits, form.blocks)
            result.append(pack(np.repeat(points, form.block // block, axis=1), form.bits))
        return result

    operands = (codes, scales, *([zeros] if zeros is not None else []))
    binding = replace(form.binding, operands=operands, produce=coded)
    return replace(form, binding=binding, block=block, codes=codes, scales=(scales,), zeros=zeros)


# Nodes ------------------------------------------------------------------------------------------------------------


def pack_experts(packer: Packer, node: ir.Node) -> None:
    """MoE or QMoE in place of `truecast::Experts`, its result weighed by the sum of the author's weights."""
    name = node.attributes["module"].as_string()
    halves = bool(node.attributes["halves"].as_int())
    stacks = [_stack(packer, node, "up", halves), _stack(packer, node, "down", False)]
    precision = _precision(packer, stacks)
    forms = forms_of(stacks, precision)
    packer.forms.update({stack.name: form for stack, form in zip(stacks, forms, strict=True)})
    biases = [_bias(packer, node, "up", halves), _bias(packer, node, "down", False)]
    write, (x, logits, total) = NodeWriter(node), node.inputs
    assert total is not None
    attributes = {key: node.attributes[key].value for key in CARRIED if key in node.attributes}
    attributes |= {"normalize_routing_weights": 1, "swiglu_fusion": int(attributes["activation_type"] == "swiglu")}
    if _as_codes(forms, precision):
        first, second = (_operands(packer, form) for form in forms)
        inputs = [x, logits, *first[:2], biases[0], *second[:2], biases[1], None, None, None, first[2], second[2]]
        attributes |= _code_attributes(forms, precision)
        result = write.op("QMoE", _trimmed(inputs), attributes, domain=CONTRIB, name=f"{name}.unweighted")
    else:
        first_table, second_table = (_table(packer, write, form) for form in forms)
        inputs = [x, logits, first_table, biases[0], second_table, biases[1]]
        result = write.op("MoE", _trimmed(inputs), attributes, domain=CONTRIB, name=f"{name}.unweighted")
    result.shape, result.type = node.outputs[0].shape, node.outputs[0].type
    finish(node, write.op("Mul", [result, total], name=name))


def pack_product(packer: Packer, node: ir.Node) -> None:
    """A product with the matrices of all experts in place of `truecast::ExpertProduct`, in standard operators."""
    weight, bias = (node.attributes[key].as_string() for key in ("weight", "bias"))
    transposed = bool(node.attributes["transposed"].as_int())
    tensor = packer.sources[weight]
    stack = Stack(weight, as_matrix(tensor, transposed, False), tensor.shape[0])
    form = forms_of([stack], packer.precision_of(weight))[0]
    packer.forms[weight] = form
    write = NodeWriter(node)
    turned = write.op("Transpose", [_table(packer, write, form)], {"perm": [0, 2, 1]})
    result = write.op("MatMul", [node.inputs[0], turned], name=f"{weight}.product")
    if bias:
        result.shape, result.type = node.outputs[0].shape, node.outputs[0].type
        added = dense_binding(bias, packer.sources[bias], packer.precision.dtype)
        wide = write.op("Unsqueeze", [*packer.add(added).values(), write.ints(1)])
        result = write.op("Add", [result, wide], name=f"{weight}.output")
    finish(node, result)


def _stack(packer: Packer, node: ir.Node, part: str, halves: bool) -> Stack:
    name = node.attributes[part].as_string()
    tensor = packer.sources[name]
    return Stack(name, as_matrix(tensor, bool(node.attributes["transposed"].as_int()), halves), tensor.shape[0])


def _precision(packer: Packer, stacks: Sequence[Stack]) -> Precision:
    """The precision of all weights of a module; raises InputError where rules give them different ones."""
    chosen = {packer.precision_of(stack.name) for stack in stacks}
    if len(chosen) > 1:
        named = " and ".join(stack.name for stack in stacks)
        raise InputError(f"One operator holds {named}, but --keep gives them different precisions; name both.")
    return chosen.pop()


def _bias(packer: Packer, node: ir.Node, part: str, halves: bool) -> ir.Value | None:
    name = node.attributes[f"{part}_bias"].as_string()
    if not name:
        return None
    tensor = packer.sources[name]
    if halves:
        read, half = tensor.reader, tensor.shape[1] // 2
        turns = np.arange(tensor.shape[1]).reshape(2, half).T.reshape(-1)
        tensor = replace(tensor, reader=lambda start, stop: read(start, stop)[:, turns], verbatim=False)
    return packer.add(dense_binding(name, tensor, packer.precision.dtype))[name]


def _as_codes(forms: Sequence[Form], precision: Precision) -> bool:
    """Whether QMoE multiplies with the codes: it takes floats beside those of 4 bits alone."""
    return all(isinstance(form, Blocks) and (precision.accuracy_level or form.bits == 4) for form in forms)


def _code_attributes(forms: Sequence[Form], precision: Precision) -> dict[str, int]:
    form = next(form for form in forms if isinstance(form, Blocks))
    return {"expert_weight_bits": form.bits, "block_size": form.block, "accuracy_level": precision.accuracy_level}


def _operands(packer: Packer, form: Form) -> list[ir.Value | None]:
    """Codes, scales and zero points."""
    assert isinstance(form, Blocks)
    values = packer.add(form.binding)
    zeros = values[form.zeros.name] if form.zeros is not None else None
    return [values[form.codes.name], values[form.scales[0].name], zeros]


def _table(packer: Packer, write: NodeWriter, form: Form) -> ir.Value:
    """The values [experts, out, in] as the graph computes with them; codes are decoded when the graph is loaded."""
    dtype = packer.precision.dtype
    if isinstance(form, Floats):
        table = packer.add(form.binding)[form.table.name]
        return table if form.table.dtype == dtype else write.op("Cast", [table], {"to": dtype})
    assert isinstance(form, Blocks)
    codes, scales, zeros = _operands(packer, form)
    assert codes is not None and scales is not None
    grouped = write.ints(0, 0, -1, form.block)
    values = write.op("Cast", [write.op("Reshape", [_bytes(write, codes, form.bits), grouped])], {"to": dtype})
    if zeros is None:
        centred = write.op("Add", [values, write.scalar(-(1 << (form.bits - 1)), dtype)])
    else:
        points = _bytes(write, zeros, form.bits)
        if form.bits * form.blocks % BYTE_BITS:
            points = write.op("Slice", [points, write.ints(0), write.ints(form.blocks), write.ints(2)])
        tall = write.op("Unsqueeze", [write.op("Cast", [points], {"to": dtype}), write.ints(3)])
        centred = write.op("Sub", [values, tall])
    scaled = write.op("Mul", [centred, write.op("Unsqueeze", [scales, write.ints(3)])])
    return write.op("Reshape", [scaled, write.ints(0, 0, form.width)])


def _bytes(write: NodeWriter, packed: ir.Value, bits: int) -> ir.Value:
    """One byte for each code: [experts, out, …]; the lowest bits are the first."""
    if bits == BYTE_BITS:
        return packed
    parts = [code_at(write, packed, place, bits) for place in (0, bits)]
    both = [write.op("Unsqueeze", [part, write.ints(3)]) for part in parts]
    return write.op("Reshape", [write.op("Concat", both, {"axis": 3}), write.ints(0, 0, -1)])


def _trimmed(inputs: Sequence[ir.Value | None]) -> list[ir.Value | None]:
    """Without the inputs left out at the end."""
    last = max(index for index, value in enumerate(inputs) if value is not None)
    return list(inputs[: last + 1])
