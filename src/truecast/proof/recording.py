"""What the author's model computes on the way: inputs and outputs of its modules, and of its attention function.

Modules are watched with forward hooks. Torch's Linear and Embedding are watched at their class, so that the rows of an
embedding are seen before a subclass scales them, as the graph names them. Attention is watched through transformers'
own interface, which every model that the graph's attention operator can serve goes through.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from truecast.proof.author_states import states_of
from truecast.proof.operators import Array
from truecast.proof.points import Point
from truecast.proof.reference import Reference
from truecast.runtime.decoder import positions
from truecast.states import StateTensor

WATCHED = "truecast-watched"
"""The name of the watching attention function while a recording runs."""


@dataclass(frozen=True)
class AttentionRecord:
    """One call of the attention function: arrays [batch, heads, length, width], and the settings it was given.

    `output` is [batch, new, heads, width].
    """

    query: Array
    key: Array
    value: Array
    output: Array
    settings: Mapping[str, Any]


@dataclass
class Recording:
    """One run: what every module took and gave (copies: authors change tensors in place), attention in the order of the
    layers, and the cache as it was before the run."""

    inputs: dict[str, Array] = field(default_factory=dict)
    outputs: dict[str, Array] = field(default_factory=dict)
    attention: list[AttentionRecord] = field(default_factory=list)
    past: dict[StateTensor, Array] = field(default_factory=dict)


def record(reference: Reference, point: Point, run_number: int) -> Recording:
    """Runs a point up to and including one of its runs, and records that one."""
    reference.reset()
    cache = reference.new_cache()
    recording = Recording()
    for number, run in enumerate(point.runs()):
        mask = point.mask[:, : run.end]
        arguments = (cache, point.tokens[:, run.start : run.end], mask, positions(mask, run.end - run.start))
        if number < run_number:
            reference.step(*arguments, 1)
            continue
        recording.past = {tensor: held.numpy().copy() for tensor, held in states_of(cache).items()}
        with _watched(reference.model, recording):
            reference.step(*arguments, 0)
        return recording
    raise ValueError(f"{point.name} has no run {run_number}")


@contextmanager
def _watched(model: PreTrainedModel, recording: Recording) -> Iterator[None]:
    names = {id(module): name for name, module in model.named_modules()}
    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_hook(_hook(name, recording), with_kwargs=True).remove)
        for kind in (nn.Linear, nn.Embedding):
            stack.enter_context(_watched_class(kind, names, recording))
        stack.enter_context(watched_attention(model, recording))
        yield


def _hook(name: str, recording: Recording) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        results = output if isinstance(output, tuple | list) else (output,)
        result = next((x for x in results if isinstance(x, Tensor)), None)
        if given is not None:
            recording.inputs[name] = given.numpy().copy()
        if result is not None and not isinstance(module, nn.Linear | nn.Embedding):
            recording.outputs[name] = result.numpy().copy()

    return hook


@contextmanager
def _watched_class(kind: type[nn.Module], names: Mapping[int, str], recording: Recording) -> Iterator[None]:
    original: Callable[..., Any] = kind.forward

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if id(self) in names:
            recording.outputs[names[id(self)]] = result.numpy().copy()
        return result

    kind.forward = forward
    try:
        yield
    finally:
        kind.forward = original


@contextmanager
def watched_attention(model: PreTrainedModel, recording: Recording) -> Iterator[None]:
    """Records every call of the attention function while the context lasts."""
    functions, masks = ALL_ATTENTION_FUNCTIONS._global_mapping, ALL_MASK_ATTENTION_FUNCTIONS._global_mapping
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    configs |= {id(m.__dict__["config"]): m.__dict__["config"] for m in model.modules() if "config" in m.__dict__}
    before = {key: getattr(config, "_attn_implementation", None) for key, config in configs.items()}

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
    ) -> Any:  # the names are transformers' own: authors call by them
        author = inspect.unwrap(type(module).forward).__globals__["eager_attention_forward"]
        result = author(module, query, key, value, attention_mask, *args, **kwargs)
        settings = {name: v for name, v in kwargs.items() if isinstance(v, bool | int | float | None)}
        q, k, v, out = (x.numpy().copy() for x in (query, key, value, result[0]))
        recording.attention.append(AttentionRecord(q, k, v, out, settings))
        return result

    functions[WATCHED], masks[WATCHED] = attend, masks["eager"]
    try:
        for config in configs.values():
            config._attn_implementation = WATCHED
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]
        functions.pop(WATCHED, None)
        masks.pop(WATCHED, None)
