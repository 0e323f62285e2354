"""TC6xx: caches that are copied, masks that poison rows, rotary operators and dropout."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from truecast.diagnosis.evidence import Evidence, label
from truecast.diagnosis.mending import switches
from truecast.diagnosis.model import Seen, seen
from truecast.diagnosis.placement import Place
from truecast.diagnosis.rules.rule import ERROR, WARNING, Rule
from truecast.diagnosis.schemas import standard

CACHE_INPUT_RANK = 4
RANDOM = ("RandomNormalLike", "RandomUniformLike", "Bernoulli", "RandomNormal", "RandomUniform", "Multinomial")
SHAPE_ONLY = ("Shape", "Size")
MASK_DEPTH = 24
"""Nodes to go back from a mask to the input that it is made of."""
GUARDS = ("IsNaN", "Where")
ROTARY_IDS, ROTARY_COSINES = 3, 1
GQA_POSITIONS, GQA_BIAS, ATTENTION_MASK = 9, 10, 3


def cache_copied(evidence: Evidence) -> Seen | None:
    """Present = Concat(past, new), which copies the whole cache at every step."""
    outputs = set(evidence.graph.outputs)
    nodes = [
        node
        for node in evidence.nodes
        if node.op_type == "Concat" and node.outputs[0] in outputs and any(_is_cache(value) for value in node.inputs)
    ]
    return seen(map(label, nodes))


def _is_cache(value: ir.Value | None) -> bool:
    return (
        value is not None
        and value.is_graph_input()
        and value.shape is not None
        and len(value.shape) == CACHE_INPUT_RANK
    )


def mask_poisons(evidence: Evidence) -> Seen | None:
    """Minus infinity from a padding mask before a Softmax: a row that is masked whole becomes NaN."""
    return seen(
        label(node)
        for node in evidence.nodes
        if node.op_type == "Softmax" and _adds_infinity(node.inputs[0], evidence) and not _is_guarded(node)
    )


def _is_guarded(softmax: ir.Node) -> bool:
    return any(reader.op_type in GUARDS for reader in softmax.outputs[0].consumers())


def _adds_infinity(value: ir.Value | None, evidence: Evidence) -> bool:
    """Whether a score had minus infinity put in where a graph's input says so."""
    producer = value.producer() if value is not None else None
    if producer is None:
        return False
    if producer.op_type == "Add":
        return any(_is_infinite_mask(side, evidence, MASK_DEPTH) for side in producer.inputs)
    return producer.op_type == "Where" and _is_infinite_mask(value, evidence, MASK_DEPTH)


def _is_infinite_mask(value: ir.Value | None, evidence: Evidence, depth: int) -> bool:
    """Whether a value is a Where with minus infinity whose condition comes from an input's elements."""
    producer = value.producer() if value is not None else None
    if producer is None or depth == 0:
        return False
    if producer.op_type == "Where":
        infinite = any(_is_minus_infinity(side, evidence) for side in producer.inputs[1:])
        return infinite and _depends_on_input(producer.inputs[0], depth)
    if producer.op_type in ("Unsqueeze", "Expand", "Cast", "Slice", "Identity", "Reshape"):
        return _is_infinite_mask(producer.inputs[0], evidence, depth - 1)
    return False


def _is_minus_infinity(value: ir.Value | None, evidence: Evidence) -> bool:
    values = evidence.values(value)
    return values is not None and values.dtype.kind == "f" and values.size > 0 and bool(np.isneginf(values).all())


def _depends_on_input(value: ir.Value | None, depth: int) -> bool:
    """Whether elements of an input of the graph, not its shape alone, reach a value."""
    if value is None or depth == 0:
        return False
    if value.is_graph_input():
        return value.const_value is None
    producer = value.producer()
    if producer is None or producer.op_type in SHAPE_ONLY:
        return False
    return any(_depends_on_input(source, depth - 1) for source in producer.inputs)


def padding_not_finite(evidence: Evidence) -> Seen | None:
    """Seen in a run: NaN or infinity once the first row is padded on the left."""
    trials = [] if evidence.observed is None else evidence.observed.trials
    plain = any(trial.not_finite for trial in trials if not trial.padded)
    return None if plain else seen(name for trial in trials if trial.padded for name in trial.not_finite)


def rotary_single_batch(evidence: Evidence) -> Seen | None:
    """Cosines of batch 1 where the operator wants one row for each row of its input."""
    return seen(label(node) for node in evidence.nodes if _is_single_batch(node, evidence))


def _is_single_batch(node: ir.Node, evidence: Evidence) -> bool:
    if node.op_type != "RotaryEmbedding" or standard(node.domain):
        return False
    if len(node.inputs) > ROTARY_IDS and node.inputs[ROTARY_IDS] is not None:
        return False
    cosines, rows = evidence.dims(node.inputs[ROTARY_COSINES]), evidence.dims(node.inputs[0])
    return bool(cosines and rows and cosines[0] == 1 and rows[0] != 1)


def rotary_inside(evidence: Evidence) -> Seen | None:
    """GroupQueryAttention that rotates by itself although positions are given: prefill and decode differ."""
    return seen(label(n) for n in _grouped(evidence) if _number(n, "do_rotary") and _has(n, GQA_POSITIONS))


def mask_unfuses(evidence: Evidence) -> Seen | None:
    """Attention with a mask tensor, which CUDA's fastest kernels do not take."""
    if evidence.provider not in ("cuda", "tensorrt"):
        return None
    masked = [node for node in _grouped(evidence) if _has(node, GQA_BIAS)]
    masked += [
        n for n in evidence.nodes if n.op_type == "Attention" and not standard(n.domain) and _has(n, ATTENTION_MASK)
    ]
    return seen(label(node) for node in masked if evidence.placement.places.get(node) is Place.DEVICE)


def _grouped(evidence: Evidence) -> Iterator[ir.Node]:
    return (node for node in evidence.nodes if node.op_type == "GroupQueryAttention")


def _has(node: ir.Node, index: int) -> bool:
    return len(node.inputs) > index and node.inputs[index] is not None


def _number(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return 0 if attribute is None else attribute.as_int()


def training_dropout(evidence: Evidence) -> Seen | None:
    """A graph that was traced in training mode: dropout, or a batch norm that uses the batch's own statistics."""
    return seen(map(label, evidence.training_nodes))


def random_results(evidence: Evidence) -> Seen | None:
    """Random numbers in the graph: the same input gives different outputs."""
    return seen(label(node) for node in evidence.nodes if node.op_type in RANDOM)


RULES = (
    Rule(
        "TC601",
        WARNING,
        "The cache is copied at every step",
        "Each token costs time in proportion to the context: megabytes copied per layer.",
        "Bind past and present to one buffer: GroupQueryAttention, or TensorScatter with a cache of fixed size.",
        cache_copied,
    ),
    Rule(
        "TC602",
        WARNING,
        "A padding mask of minus infinity before Softmax",
        "A row that is masked whole becomes NaN, which spreads to every later layer.",
        "Export at opset 23 or later (Attention), use a large finite number, or zero such rows with Where.",
        mask_poisons,
    ),
    Rule(
        "TC603",
        ERROR,
        "Padded rows give NaN",
        "A batch with padding on the left returns NaN.",
        "Export at opset 23 or later (Attention), use a large finite number, or zero such rows with Where.",
        padding_not_finite,
    ),
    Rule(
        "TC604",
        ERROR,
        "A rotary operator that works for batch 1 only",
        "Every run with two rows or more fails.",
        "Make position_ids a [batch, sequence] input, or export at an opset below 23.",
        rotary_single_batch,
    ),
    Rule(
        "TC605",
        WARNING,
        "GroupQueryAttention rotates by itself and is given positions",
        "Prefill follows the positions and decode does not: wrong logits for rows padded on the left.",
        "Rotate outside with RotaryEmbedding, or leave the positions away for unpadded rows.",
        rotary_inside,
    ),
    Rule(
        "TC606",
        WARNING,
        "Attention with a mask tensor",
        "CUDA's flash kernels take none: a slower kernel runs in silence.",
        "Use is_causal with nonpad_kv_seqlen, or seqlens_k of GroupQueryAttention, and no mask on the hot path.",
        mask_unfuses,
    ),
    Rule(
        "TC607",
        ERROR,
        "The graph was traced in training mode",
        "Outputs are random or depend on the other rows of the batch.",
        "Call model.eval() before the export.",
        training_dropout,
        mend=switches,
    ),
    Rule(
        "TC608",
        WARNING,
        "Random numbers in the graph",
        "The same input gives different outputs.",
        "Feed the noise as an input, or export the deterministic path.",
        random_results,
    ),
)
