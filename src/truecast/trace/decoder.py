"""The trace of a causal language model: one step, from token ids and cache to logits and cache.

Data flow: configuration → skeleton under fake tensors → a recording run that learns the shapes of the cache →
torch.export of one step with lowered leaves → ONNX graph with abstract operators (`truecast::…`) → stamped layers.
Attention that the dialect's operator cannot do is traced in the author's own form; the report says so.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from transformers import PreTrainedConfig, PreTrainedModel

from truecast.checkpoint.model import StoredTensor
from truecast.checkpoint.tasks import FEATURES
from truecast.dialects.model import Dialect
from truecast.errors import InputError
from truecast.trace.caches import GraphCache, RecordingCache, dtype_name
from truecast.trace.capture import capture, past_of
from truecast.trace.cleanup import clean
from truecast.trace.context import LeafMismatch, States, StepContext
from truecast.trace.conversion import as_parameters, checkpoint_renamer
from truecast.trace.experts import ExpertsSeam, experts_seam
from truecast.trace.explaining import NOT_YET, explained, trouble
from truecast.trace.layers import DOMAIN, UnlikeLayersError, find_layers, traced_once
from truecast.trace.leaves import lowered_leaves
from truecast.trace.products import name_products
from truecast.trace.quiet import FAKE_TENSORS, KERNELS, silenced
from truecast.trace.remembered import results_not_kept
from truecast.trace.repeatable import watched
from truecast.trace.rotary import functional_frequencies, rotary_seam
from truecast.trace.scans import ScanSeam, scan_seam
from truecast.trace.seams import AttentionSeam, attention_seam
from truecast.trace.skeleton import (
    build_decoder,
    fake_tensors,
    real_buffers,
    tied_names,
)
from truecast.trace.stamp import sort_cache, stamp
from truecast.trace.traced import Traced


@dataclass(frozen=True, kw_only=True)
class Trace(Traced):
    """A traced decoder. `states` are the tensors that each layer with a state carries."""

    states: States
    padding: str
    in_place: bool


class _Step(nn.Module):
    """One step of the decoder as a graph sees it."""

    def __init__(self, model: PreTrainedModel, states: States, lowered: bool, padding: str) -> None:
        super().__init__()
        self.decoder, self.states, self.lowered, self.padding = model, states, lowered, padding
        self.stand_ins: Callable[[GraphCache], Any] = lambda cache: nullcontext()
        self.seams: list[Any] = []
        self.note: Callable[[list[str]], None] = lambda names: None

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past_probe: Tensor) -> Any:
        def make_past(layer: int) -> list[Tensor]:
            return past_of(self.states[layer], past_probe, input_ids.shape[0])

        context = StepContext(self.states, make_past, past_probe.shape[0], attention_mask.shape[1])
        if self.lowered:
            self._contract(context, attention_mask, input_ids)
        cache = GraphCache(context, max(self.states) + 1, self.lowered)
        for seam in self.seams:
            seam.cache = cache
        with self.stand_ins(cache):
            logits = called(self.decoder, self.states, input_ids, attention_mask, position_ids, cache).logits
        states = (state for layer in sorted(self.states) for state in self.states[layer])
        left = [state.present for state in states if state.present in context.present]
        self.note(left)
        return logits.float(), [context.present[name] for name in left]

    def _contract(self, context: StepContext, mask: Tensor, ids: Tensor) -> None:
        """What the attention operator is told about the mask; `expand` turns it into standard operators."""
        batch, total = mask.shape
        shapes: list[Any] = [[batch], []]
        dtypes = [torch.int32, torch.int32]
        if self.padding == "any":
            shapes.append([batch, 1, ids.shape[1], total])
            dtypes.append(self.decoder.dtype)
        outputs = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::Contract", [mask, ids], {"padding": self.padding}, dtypes=dtypes, shapes=shapes, version=1
        )
        context.last_position, context.total_length = outputs[0], outputs[1]
        context.bias = outputs[2] if self.padding == "any" else None


def called(model: Any, states: States, ids: Tensor, mask: Tensor, positions: Tensor, cache: GraphCache) -> Any:
    """What the author's model returns for one step, its cache under the name that the author gave it.

    The mask is that of all positions, of the new ones only where no layer looks back at others.
    """
    taken = inspect.signature(model.forward).parameters
    name = next((name for name in CACHE_NAMES if name in taken), CACHE_NAMES[0])
    looks_back = any(state.grows for layer in states.values() for state in layer) or not states
    mask = mask if looks_back else mask[:, mask.shape[1] - ids.shape[1] :]
    where = {} if name != CACHE_NAMES[0] and "position_ids" not in taken else {"position_ids": positions}
    return model(input_ids=ids, attention_mask=mask, use_cache=True, **where, **{name: cache})


CACHE_NAMES = ("past_key_values", "cache_params")
"""What authors call the cache among the arguments of a model."""
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")
"""What configurations call the number of positions (the last: MPT's and DBRX's)."""


def trace_decoder(
    config: PreTrainedConfig,
    dialect: Dialect,
    *,
    dtype: torch.dtype = torch.float32,
    padding: str = "any",
    trust_remote_code: bool = False,
    scales: Mapping[str, StoredTensor] | None = None,
) -> Trace:
    """Traces the causal language model of `config` for `dialect`.

    Args:
        config: as transformers reads it.
        dialect: the operators to lower to.
        dtype: of weights and activations in the graph.
        padding: the contract of the attention mask, `any` or `right`.
        trust_remote_code: whether the checkpoint's own code may run.
        scales: what the checkpoint divides activations by (see `divided`).
    """
    with fake_tensors():
        model = build_decoder(config, dtype, trust_remote_code, scales)
    with experts_seam(model, dialect) as experts:
        with fake_tensors(), functional_frequencies(model):
            states = _states(model, config)
        return _traced(model, states, dialect, padding, experts)


def positions_of(config: PreTrainedConfig) -> int | None:
    """How many positions a model was made for, whatever its configuration calls them; None where it does not say."""
    text = config.get_text_config()
    found = (getattr(text, name, None) for name in POSITIONS)
    return next((int(value) for value in found if value), None)


def _traced(model: PreTrainedModel, states: States, dialect: Dialect, padding: str, experts: ExpertsSeam) -> Trace:
    """The first of the ways to trace that the model allows."""
    kind = model.config.model_type
    reasons: dict[str, str] = {}
    for lowered, once in ((True, True), (True, False), (False, True), (False, False)):
        if (lowered and "attention" in reasons) or (once and "layers" in reasons):
            continue
        try:
            with silenced(FAKE_TENSORS, KERNELS):
                return _trace(model, states, dialect, padding, lowered, once, reasons, experts)
        except UnlikeLayersError as reason:
            reasons["layers"] = str(reason)
        except LeafMismatch as reason:
            reasons["attention"] = str(reason)
        except InputError:
            raise
        except Exception as error:
            # the author's code met a CausalMask where it wants a tensor: it does its attention by itself
            words = trouble(error)
            if words is None:
                raise
            if not lowered:
                raise InputError(f"{kind!r} cannot be traced: {words}; {NOT_YET}.") from error
            reasons["attention"] = f"the model does its attention by itself ({words})"
    raise InputError(f"{kind!r} cannot be traced: {'; '.join(reasons.values())}; {NOT_YET}.")


def _states(model: PreTrainedModel, config: PreTrainedConfig) -> States:
    """What every layer carries, learned by running the model once under fake tensors."""
    layers = config.get_text_config().num_hidden_layers
    cache = RecordingCache(layers, dtype_name(model.dtype))
    ids = torch.zeros(2, 3, dtype=torch.long)
    logits: list[Tensor] = []
    refused = explained(f"{config.model_type!r} cannot be traced as a decoder")
    with refused, torch.no_grad(), silenced(FAKE_TENSORS, KERNELS), watched(model, lambda: logits):
        logits.append(called(model, {}, ids, torch.ones_like(ids), ids, cache).logits)
    if not cache.states:
        raise InputError(
            f"{config.model_type!r} keeps nothing from token to token and cannot be cast as a decoder yet; "
            f"take it without its head, with --task {FEATURES}."
        )
    return cache.states


def _trace(
    model: PreTrainedModel,
    states: States,
    dialect: Dialect,
    padding: str,
    lowered: bool,
    once: bool,
    reasons: dict[str, str],
    experts: ExpertsSeam,
) -> Trace:
    growing = {state.layer for layer in states.values() for state in layer if state.grows}
    lowered = lowered and dialect.attention is not None and bool(growing)
    step = _Step(model, states, lowered, padding if lowered else "any").eval()
    layers = find_layers(model, len(states)) if once else None
    with ExitStack() as stack:
        stack.enter_context(results_not_kept(model))
        if lowered:
            assert dialect.attention is not None
            attention = AttentionSeam(dialect.attention, _disable_current_modes)
            step.seams.append(attention)
            stack.enter_context(attention_seam(model, attention))
        scans = ScanSeam(_disable_current_modes)
        step.seams.append(scans)
        stack.enter_context(scan_seam(model, scans))
        stack.enter_context(functional_frequencies(model))
        rotary = stack.enter_context(rotary_seam(model, dialect.rotary))
        counts = stack.enter_context(lowered_leaves(model, dialect))
        if layers is not None:
            step.stand_ins = lambda cache: traced_once(layers[1], cache)
        noted: list[list[str]] = []  # not an attribute of the step: torch.export puts those back
        step.note = noted.append
        graph = capture(step, lambda: noted[-1], dialect.opset, positions_of(model.config))
        counts = Counter(counts) + experts.counts
    reasons = reasons | experts.reasons
    return _finish(model, graph, states, counts, reasons, step, layers, any(seam.calls for seam in rotary))


def _finish(
    model: PreTrainedModel,
    graph: ir.Model,
    states: States,
    counts: Counter[str],
    reasons: dict[str, str],
    step: _Step,
    layers: tuple[str, nn.ModuleList] | None,
    rotary: bool,
) -> Trace:
    clean(graph)
    name_products(graph.graph, model)
    if layers is not None:
        stamp(graph, layers[0])
        clean(graph)
    sort_cache(graph)
    parameters = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    persistent = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    missing = [
        name
        for name, value in graph.graph.initializers.items()
        if value.const_value is None and name not in parameters and name not in persistent
    ]
    names = {id(module): name for name, module in model.named_modules()}
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if step.lowered:
        counts["attention"] = sum(any(state.grows for state in layer) for layer in states.values())
    if rotary:
        counts["rotary"] = sum(node.op_type == "Rotary" for node in graph.graph)
    return Trace(
        model=graph,
        states=states,
        buffers=dict(real_buffers(model, missing)),
        parameters={**parameters, **persistent},
        tied=tied_names(model),
        embedding=f"{names[id(model.get_input_embeddings())]}.weight",
        head=f"{names[id(head)]}.weight" if head is not None else "",
        rename=checkpoint_renamer(model),
        merge=partial(as_parameters, model=model),
        padding=step.padding,
        in_place=step.lowered,
        lowered=counts,
        traced=dict(reasons),
    )
