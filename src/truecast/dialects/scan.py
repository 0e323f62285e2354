"""Selective scans, the recurrence of state space models: h' = decay · h + u ⊗ B, y = h' · C.

Data flow: an author's function with the arguments of a kernel of the mamba_ssm package (`selective_scan_fn`, Mamba;
`mamba_chunk_scan_combined`, Mamba 2) → `recognise` runs its own code and the formula side by side → `scan` computes
what lies before and behind the recurrence and leaves one `truecast::SelectiveScan`, which becomes ONNX's Scan.

| | shape | it is |
|---|---|---|
| decay | [batch, positions, heads, width or 1, state or 1] | exp(dt · A) |
| u | [batch, positions, heads, width] | dt · x |
| B, C | [batch, positions, heads, state] | |
| h | [batch, heads, width, state] | Mamba has one head, as wide as there are channels |
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from truecast.dialects.probe import PROBE_SEED, agrees, author_call

ROWS, POSITIONS, CHANNELS, STATE, HEADS, GROUPS, WIDTH, CHUNK = 2, 7, 6, 3, 4, 2, 5, 4
"""Sizes of the probe: all different, so that a mixed-up axis shows."""
Recurrence = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Computes y [batch, positions, heads, width] and the last h from decay, u, B, C and the first h."""


@dataclass(frozen=True)
class ScanForm:
    """One kernel: the arguments by which its functions are known, and how it asks for the last state."""

    arguments: frozenset[str]
    last: str
    compute: Callable[[Mapping[str, Any], Tensor | None, Recurrence], tuple[Tensor, Tensor]]
    probe: Callable[[Callable[..., Tensor]], dict[str, Any]]

    def scan(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        first: Tensor,
        by: Recurrence,
    ) -> Any:
        """What the author's `function` returns for these arguments, going on from the state `first`."""
        bound = inspect.signature(function).bind(*args, **kwargs)
        given = bound.arguments | bound.arguments.pop("kwargs", {})
        y, last = self.compute(given, first, by)
        return (y, last) if given.get(self.last) else y


def recurrence(decay: Tensor, u: Tensor, inward: Tensor, outward: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """The formula itself, position by position."""
    state, outputs = first, []
    for index in range(u.shape[1]):
        state = decay[:, index] * state + u[:, index, ..., None] * inward[:, index, :, None]
        outputs.append((state @ outward[:, index, ..., None])[..., 0])
    return torch.stack(outputs, 1), state


def emit(decay: Tensor, u: Tensor, inward: Tensor, outward: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """One abstract operator for the formula, in float32."""
    inputs = [tensor.float() for tensor in (decay, u, inward, outward, first)]
    y, last = torch.onnx.ops.symbolic_multi_out(
        "truecast::SelectiveScan",
        inputs,
        {},
        dtypes=[torch.float32, torch.float32],
        shapes=[u.shape, first.shape],
        version=1,
    )
    return y, last


def _wide(x: Tensor) -> Tensor:
    """Floats of 16 bits become 32: the kernels compute in float32 whatever they are given."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _steps(dt: Tensor, bias: Tensor | None, bend: bool) -> Tensor:
    dt = _wide(dt) if bias is None else _wide(dt) + _wide(bias)
    return softplus(dt) if bend else dt


def _channels(given: Mapping[str, Any], first: Tensor | None, by: Recurrence) -> tuple[Tensor, Tensor]:
    """Mamba: x, dt [batch, channels, positions], A [channels, state], B, C [batch, state, positions]."""
    x, matrix, (inward, outward) = _wide(given["hidden_states"]), given["A"], (given[n].transpose(1, 2) for n in "BC")
    bias = given.get("delta_bias")
    dt = _steps(given["dt"], None if bias is None else bias[..., None], bool(given.get("delta_softplus")))
    decay = torch.exp(matrix * dt.transpose(1, 2)[..., None])[:, :, None]
    u = (dt * x).transpose(1, 2)[:, :, None]
    state = x.new_zeros(x.shape[0], 1, *matrix.shape) if first is None else first[:, None]
    y, last = by(decay, u, inward[:, :, None], outward[:, :, None], state)
    y = y[:, :, 0].transpose(1, 2)
    y = y if given.get("D") is None else y + x * given["D"][:, None]
    y = y if given.get("z") is None else y * silu(_wide(given["z"]))
    return y.to(given["hidden_states"].dtype), last[:, 0]


def _heads(given: Mapping[str, Any], first: Tensor | None, by: Recurrence) -> tuple[Tensor, Tensor]:
    """Mamba 2: x [batch, positions, heads, width], dt [… heads], A [heads], B, C [batch, positions, groups, state]."""
    x, matrix = _wide(given["hidden_states"]), given["A"]
    dt = _steps(given["dt"], given.get("dt_bias"), bool(given.get("dt_softplus")))
    dt = torch.clamp(dt, *given.get("dt_limit", (0.0, torch.inf)))
    heads, groups = x.shape[2], given["B"].shape[2]
    inward, outward = (given[name].repeat_interleave(heads // groups, 2) for name in "BC")
    first = x.new_zeros(x.shape[0], *x.shape[2:], inward.shape[-1]) if first is None else first
    y, last = by(torch.exp(matrix * dt)[..., None, None], x * dt[..., None], inward, outward, first)
    return (y if given.get("D") is None else y + given["D"][:, None] * x), last


def _channels_probe(random: Callable[..., Tensor]) -> dict[str, Any]:
    along, state = (ROWS, CHANNELS, POSITIONS), (ROWS, STATE, POSITIONS)
    matrices = {"A": -random(CHANNELS, STATE).abs(), "B": random(*state), "C": random(*state), "D": random(CHANNELS)}
    inputs = {"hidden_states": random(*along), "dt": random(*along), "z": random(*along)}
    return inputs | matrices | {"delta_bias": random(CHANNELS), "delta_softplus": True, "return_last_state": True}


def _heads_probe(random: Callable[..., Tensor]) -> dict[str, Any]:
    along, state = (ROWS, POSITIONS, HEADS), (ROWS, POSITIONS, GROUPS, STATE)
    matrices = {"A": -random(HEADS).abs(), "B": random(*state), "C": random(*state), "D": random(HEADS)}
    inputs = {"hidden_states": random(*along, WIDTH), "dt": random(*along), "dt_bias": random(HEADS)}
    settings = {"chunk_size": CHUNK, "dt_softplus": True, "dt_limit": (0.3, 1.1), "return_final_states": True}
    return inputs | matrices | settings | {"initial_states": random(ROWS, HEADS, WIDTH, STATE)}


COMMON = frozenset({"hidden_states", "dt", "A", "B", "C", "D"})
FORMS = (
    ScanForm(
        COMMON | {"delta_bias", "delta_softplus", "return_last_state"}, "return_last_state", _channels, _channels_probe
    ),
    ScanForm(
        COMMON | {"dt_bias", "chunk_size", "initial_states", "dt_limit", "return_final_states"},
        "return_final_states",
        _heads,
        _heads_probe,
    ),
)
KNOWN = COMMON.union(*(form.arguments for form in FORMS), {"z", "dt_softplus", "use_mambapy", "use_associative_scan"})


def form_of(function: object) -> ScanForm | None:
    """The kernel whose arguments a function takes; None for other functions."""
    if not inspect.isfunction(function):
        return None
    names = set(inspect.signature(function).parameters)
    return next((form for form in FORMS if form.arguments <= names), None)


def recognise(function: Callable[..., Any], form: ScanForm) -> bool:
    """Whether an author's function computes what its kernel does: runs it beside the formula, in float64."""
    generator = torch.Generator().manual_seed(PROBE_SEED)
    given = form.probe(lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64))
    got = author_call(function, **given)
    wanted = form.compute(given, given.get("initial_states"), recurrence)
    return isinstance(got, tuple) and all(map(agrees, got, wanted))
