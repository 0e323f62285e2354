"""From a module under fake tensors to an ONNX graph: torch.export, a look at what is dynamic, torch's ONNX exporter."""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import ml_dtypes
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import Dim, ExportedProgram

from truecast.errors import InputError
from truecast.states import PARTS, State, StateTensor
from truecast.trace.layers import DOMAIN
from truecast.trace.masked_rows import masked_rows
from truecast.trace.skeleton import fake_tensors

BATCH, NEW, PAST = 3, 17, 11
"""Sizes during the trace: unusual and different, so that one baked into the graph is easy to see."""
INPUTS = ("input_ids", "attention_mask", "position_ids", "past_probe")
PAST_NODE = "Past"
"""Abstract operator whose outputs are a layer's past: cheaper to trace than an input for each of its tensors."""
WRAPPER = "decoder."
"""Prefix of every parameter's name inside the step module."""


def capture(step: nn.Module, left: Callable[[], Sequence[str]], opset: int, positions: int | None = None) -> ir.Model:
    """The graph of one decoding step; initializers are named after the author's parameters and hold no data.

    `step(input_ids, attention_mask, position_ids, past_probe)` returns logits and the tensors of states whose names
    `left()` tells afterwards; `past_probe` has the length of the past and is not read. `positions` is how many the
    model was made for.
    """
    with fake_tensors(), torch.no_grad():
        program = _export(step)
    _require_dynamic(program, positions)
    _require_all_lengths(program, positions)
    graph = to_onnx(program, INPUTS, ["logits", *left()], opset)
    forget_weights(graph, step, WRAPPER)
    _past_inputs(graph.graph)
    return graph


def forget_weights(graph: ir.Model, module: nn.Module, wrapper: str) -> None:
    """Initializers are named after the author's parameters, without the wrapper's name, and lose their data."""
    ClearMetadataAndDocStringPass()(graph)
    graph.producer_name, graph.producer_version = "truecast", None
    bound_later = {name for named in (module.named_parameters, module.named_buffers) for name, _ in named()}
    for name, value in list(graph.graph.initializers.items()):
        value.name = name.removeprefix(wrapper)
        value.const_value = None if name in bound_later else _real_constant(value)


def _past_inputs(graph: ir.Graph) -> None:
    """The abstract pasts become the graph's inputs, in the order of the layers."""
    pasts = {node.attributes["layer"].as_int(): node for node in graph if node.op_type == PAST_NODE}
    probe = graph.inputs.pop()
    for layer, node in sorted(pasts.items()):
        parts = node.attributes["parts"].as_string().split()
        for part, output in zip(parts, node.outputs, strict=True):
            value = ir.Value(name=StateTensor(layer, part).past, shape=output.shape, type=output.type)
            graph.inputs.append(value)
            ir.convenience.replace_all_uses_with(output, value)
        graph.remove(node, safe=True)
    growing = [value for value in graph.inputs if (s := StateTensor.named(value.name)) is not None and s.part in PARTS]
    _measure_past(probe, growing[-1] if growing else None)


def _measure_past(probe: ir.Value, past: ir.Value | None) -> None:
    """Whoever asks for the probe's length gets that of the last layer's keys or values."""
    for node, _ in list(probe.uses()):
        assert node.op_type == "Shape" and past is not None, f"{node.op_type} reads the probe of the past's length"
        node.replace_input_with(0, past)
        node.attributes.add(ir.AttrInt64("start", 2))
        node.attributes.add(ir.AttrInt64("end", 3))


def _real_constant(value: ir.Value) -> ir.TensorProtocol | None:
    """The data of a constant of the author's code, or None where it has none."""
    raw = getattr(value.const_value, "raw", None)
    if isinstance(raw, FakeTensor):
        raw = raw.constant
    return None if raw is None else ir.tensor(array_of(raw.detach()), name=value.name)


def array_of(tensor: Tensor) -> NDArray[Any]:
    """A tensor's values; those of bfloat16 in the dtype of ml_dtypes, since NumPy has none."""
    if tensor.dtype is not torch.bfloat16:
        return tensor.numpy()
    return tensor.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)


def past_of(states: Sequence[State], probe: Tensor, batch: int) -> list[Tensor]:
    """The past of a layer with these states under the trace, as long as the probe where it grows."""
    outputs = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::{PAST_NODE}",
        [probe],
        {"layer": states[0].layer, "parts": " ".join(state.part for state in states)},
        dtypes=[getattr(torch, state.dtype) for state in states],
        shapes=[state.shape(batch, probe.shape[0]) for state in states],
        version=1,
    )
    return list(outputs)


def _export(step: nn.Module) -> ExportedProgram:
    # one tensor object per input: torch.export takes an object used twice for one input, without a word
    ids, positions = (torch.zeros(BATCH, NEW, dtype=torch.long) for _ in range(2))
    mask, probe = torch.ones(BATCH, NEW + PAST, dtype=torch.long), torch.zeros(PAST)
    auto = Dim.AUTO
    dynamic = (*({0: auto, 1: auto},) * 3, {0: auto})
    with masked_rows(step):
        return torch.export.export(step, (ids, mask, positions, probe), dynamic_shapes=dynamic, strict=False)


def _require_dynamic(program: ExportedProgram, positions: int | None) -> None:
    """Every requested axis must have stayed a symbol, without an upper bound before the model's last position.

    New and past tokens are two at least, so that a bound on both together leaves two fewer for either.
    """
    end = UNBOUNDED if positions is None else positions - LENGTHS[0]
    limits = {str(symbol): bounds for symbol, bounds in program.range_constraints.items()}
    inputs = [n for n in program.graph.nodes if n.op == "placeholder" and not n.name.startswith(("p_", "b_", "c_"))]
    for node in inputs:
        for axis, size in enumerate(node.meta["val"].shape):
            bound = limits.get(str(size))
            fixed = str(size).isdigit()  # a symbol may stand for a number, too
            least = UNBOUNDED if axis == 0 and node.name != INPUTS[-1] else end  # rows are no positions
            if fixed or (bound is not None and bound.upper < least):
                limit = size if fixed or bound is None else f"{bound.upper} at most"
                raise InputError(
                    f"The model fixes axis {axis} of {node.name} at {limit}; it cannot be cast with that axis free, "
                    "choose another model."
                )


def _require_all_lengths(program: ExportedProgram, positions: int | None) -> None:
    """What the author's branches asked of sums of sizes must hold at all of them: torch.export keeps it as guards.

    The last position of the model is left to the proof: an end that is cut nowhere is one of torch's guards, too.
    """
    asked = [*LENGTHS, *([positions - 1 - length for length in LENGTHS[:2]] if positions else ())]
    pairs = [(new, past) for new, past in product(asked, asked) if min(new, past) > 1]
    for guard in getattr(program, "_guards_code", None) or ():
        for new, past in (pair for pair in pairs if positions is None or sum(pair) < positions):
            shapes = ((2, new), (2, past + new), (2, new), (past,))
            sizes = {name: _Sized(shape) for name, shape in zip(INPUTS, shapes, strict=True)}
            if not _holds(guard, sizes):
                raise InputError(
                    f"The model does something else unless {SIZE.sub(_said, guard)}; "
                    "it cannot be cast for texts of every length, choose another model."
                )


def _holds(guard: str, sizes: Mapping[str, _Sized]) -> bool:
    """Whether a guard, in torch's own words, holds for inputs of these sizes; yes for words that we do not know."""
    try:
        return bool(eval(guard, {"__builtins__": {}, "L": sizes, **FUNCTIONS}))
    except (NameError, AttributeError):
        return True


@dataclass(frozen=True)
class _Sized:
    """Stands in for an input in a guard."""

    shape: tuple[int, ...]

    def size(self) -> tuple[int, ...]:
        """The input's sizes."""
        return self.shape


def _said(size: re.Match[str]) -> str:
    return {"past_probe": "past", "input_ids": "new", "position_ids": "new"}.get(size[1], "total")


LENGTHS = (2, 3, 1000, 1 << 20)
"""Lengths of past and new tokens at which guards are asked; below 2 torch.export knows nothing."""
SIZE = re.compile(r"L\['(\w+)'\]\.size\(\)\[\d\]")
FUNCTIONS = {"min": min, "max": max, "math": math}
"""What torch writes in guards beside operators."""
UNBOUNDED = 1 << 31
"""A bound of this size or more is none."""


def to_onnx(program: ExportedProgram, inputs: Sequence[str], outputs: Sequence[str], opset: int) -> ir.Model:
    """The program as an ONNX graph of that opset, nothing optimized; quiet."""
    _rewrite_differences(program)
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                program,
                opset_version=opset,
                optimize=False,
                verbose=False,
            )
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    assert exported is not None
    name_ends(exported.model.graph, inputs, outputs)
    return exported.model


def _rewrite_differences(program: ExportedProgram) -> None:
    """c - x as -x + c where c is a float and x holds integers: torch's exporter cannot promote the former's types."""
    for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten.rsub.Scalar):
        whole, number, *rest = node.args
        if rest or not isinstance(number, float) or whole.meta["val"].is_floating_point():
            continue
        with program.graph.inserting_before(node):
            negative = program.graph.call_function(torch.ops.aten.neg.default, (whole,))
        negative.meta = dict(whole.meta)
        node.target, node.args = torch.ops.aten.add.Tensor, (negative, number)
    program.graph_module.recompile()


def name_ends(graph: ir.Graph, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Names inputs and outputs; an output that is an input, or another output, too, becomes a value of its own.

    The exporter's own names of outputs would be those of the inputs that a module returns unchanged.
    """
    for value, name in zip(graph.inputs, inputs, strict=True):
        value.name = name
    named: set[int] = set(map(id, graph.inputs))
    for index, (value, name) in enumerate(zip(list(graph.outputs), outputs, strict=True)):
        if id(value) in named or value.is_initializer():
            same = ir.node("Identity", [value])
            same.outputs[0].shape, same.outputs[0].type = value.shape, value.type
            graph.append(same)
            graph.outputs[index] = value = same.outputs[0]
        named.add(id(value))
        value.name = name
