"""The graph's interface: how many logits it gives, and the names of its dimensions, which other loaders rely on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from truecast.dialects.expand import NodeWriter
from truecast.states import StateTensor, is_past
from truecast.trace.cleanup import forget_inner_shapes
from truecast.trace.decoder import Trace

KEEP = "num_logits_to_keep"
INT64_MAX = (1 << 63) - 1

INPUT_DIMS = {
    "input_ids": ("batch_size", "sequence_length"),
    "attention_mask": ("batch_size", "total_sequence_length"),
    "position_ids": ("batch_size", "sequence_length"),
}


def apply_interface(trace: Trace, single_logits: bool) -> None:
    """Adds the choice of logits and names every dimension of inputs and outputs.

    With `single_logits`, the last position of a row is the last one whose mask is 1 (rows padded on the right), and the
    logits are declared as one position; otherwise it is the last of all.
    """
    graph = trace.model.graph
    _keep_last(trace, single_logits)
    for value in list(graph.inputs):
        if not value.uses() and value.name == "position_ids":
            graph.inputs.remove(value)
        elif value.name in INPUT_DIMS:
            value.shape = ir.Shape(INPUT_DIMS[value.name])
    states = {state.past: state for states in trace.states.values() for state in states}
    for value in (*graph.inputs, *graph.outputs):
        if (tensor := StateTensor.named(value.name)) is not None:
            length = "past_sequence_length" if is_past(value.name) else "total_sequence_length"
            value.shape = ir.Shape(states[tensor.past].shape("batch_size", length))
    forget_inner_shapes(graph)


def _keep_last(trace: Trace, single: bool) -> None:
    """Keeps the last `num_logits_to_keep` positions in front of the head; an initializer that a caller may override.

    The default 1 saves the largest product of a prefill; 0 keeps every position.
    """
    graph = trace.model.graph
    logits = graph.outputs[0]
    vocabulary = logits.shape[-1] if logits.shape is not None else None
    head = next((n for n in graph if n.op_type == "Linear" and n.attributes["weight"].as_string() == trace.head), None)
    place = head if head is not None else logits.producer()
    assert place is not None
    keep = ir.Value(name=KEEP, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.INT64))
    keep.const_value = ir.tensor(np.array(1, np.int64), name=KEEP)
    graph.inputs.append(keep)
    graph.initializers.add(keep)
    choose = _last_real if single else _last
    if head is not None:
        head.replace_input_with(0, choose(NodeWriter(head), head.inputs[0], keep))
    else:
        _keep_last_output(graph, logits, place, keep, choose)
    logits = graph.outputs[0]
    logits.shape = ir.Shape(["batch_size", 1 if single else "num_logits", vocabulary])


def _last(write: NodeWriter, value: ir.Value | None, keep: ir.Value) -> ir.Value:
    start = write.op("Reshape", [write.op("Neg", [keep]), write.ints(1)])
    return write.op("Slice", [value, start, write.ints(INT64_MAX), write.ints(1)])


def _last_real(write: NodeWriter, value: ir.Value | None, keep: ir.Value) -> ir.Value:
    """Per row, the positions up to the last new one whose mask is 1; [batch, sequence, width] → [batch, kept, width].

    The new positions are the mask's last columns. A row without a real one gives its first: nobody reads that.
    """
    inputs = {x.name: x for x in write.graph.inputs}
    mask, ids = inputs["attention_mask"], inputs["input_ids"]
    zero, one = (write.scalar(number, ir.DataType.INT64) for number in (0, 1))
    count_new = write.op("Shape", [ids], {"start": 1, "end": 2})
    new = write.op("Squeeze", [count_new])
    latest = write.op("Slice", [mask, write.op("Neg", [count_new]), write.ints(INT64_MAX), write.ints(1)])
    numbers = write.op("Range", [one, write.op("Add", [new, one]), one])
    real = write.op("ReduceMax", [write.op("Mul", [latest, numbers]), write.ints(1)], {"keepdims": 1})
    everything = write.op("Equal", [keep, zero])
    count = write.op("Where", [everything, new, write.op("Min", [keep, new])])
    first = write.op("Where", [everything, zero, write.op("Sub", [real, count])])
    places = write.op("Max", [write.op("Add", [first, write.op("Range", [zero, count, one])]), zero])
    return write.op("GatherND", [value, write.op("Unsqueeze", [places, write.ints(2)])], {"batch_dims": 1})


def _keep_last_output(
    graph: ir.Graph, logits: ir.Value, place: ir.Node, keep: ir.Value, choose: Callable[..., ir.Value]
) -> None:
    """Where the head is not a linear leaf: all logits are computed, the last ones given."""
    name = logits.name
    end = ir.node("Identity", [logits])
    graph.insert_after(place, end)
    result = choose(NodeWriter(end), logits, keep)
    graph.remove(end, safe=True)
    logits.name = f"{name}.all"
    result.name, result.type = name, logits.type
    graph.outputs[0] = result
