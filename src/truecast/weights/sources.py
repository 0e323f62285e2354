"""Finding the checkpoint's tensor for each parameter of the model, strictly and both ways."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

from truecast.checkpoint.model import Array, Checkpoint, StoredTensor
from truecast.checkpoint.wrappers import VALUE_HEAD
from truecast.errors import InputError

NEVER_PARAMETERS = (
    (
        re.compile(r"(^|\.)rotary_(pos_)?emb(eddings?)?\.((original_)?inv_freq|cos_cached|sin_cached)$"),
        "a rotary table, made anew from config.json",
    ),
    (VALUE_HEAD, "a value head of reinforcement learning, which no output depends on"),
    (re.compile(r"\.attn\.(bias|masked_bias)$|\.attention\.(bias|masked_bias)$"), "a causal mask kept as a buffer"),
    (re.compile(r"(^|\.)embeddings\.position_ids$"), "the numbers of the positions, made anew"),
)
"""Tensors that older versions of transformers saved although they are no weights."""

UNNEEDED = "no output of the graph depends on it"
COMPARED_AT_ONCE = 1 << 24
"""Values of a tied weight and its copy that are compared at once."""
NAMED_AT_MOST = 5
"""How many names one error lists."""


@dataclass
class Sources:
    """The checkpoint's tensors under the model's own parameter names.

    Args:
        checkpoint: where the tensors are.
        parameters: every parameter and persistent buffer of the model, with its shape.
        tied: parameters that share another one's weight.
        rename: from a name in the checkpoint to the model's.
        beyond: why the checkpoint may hold tensors that are no parameters; None where it may not.
        partial: whether the graph may leave parameters out that no output depends on.
    """

    checkpoint: Checkpoint
    parameters: Mapping[str, tuple[int, ...]]
    tied: Mapping[str, str]
    rename: Callable[[str], str]
    beyond: str | None = None
    partial: bool = False
    used: set[str] = field(default_factory=set)
    _stored: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self._stored = {self.rename(name): name for name in self.checkpoint.tensors}

    def name_of(self, parameter: str) -> str | None:
        """The checkpoint's name for a parameter, or None when it holds no such tensor."""
        return self._stored.get(parameter)

    def is_there(self, parameter: str) -> bool:
        """Whether the checkpoint holds a parameter, under its own name or one that it is tied to."""
        names = [parameter, self.tied.get(parameter), *(k for k, v in self.tied.items() if v == parameter)]
        return any(name is not None and self.name_of(name) is not None for name in names)

    def __getitem__(self, parameter: str) -> StoredTensor:
        """The stored tensor of a parameter, tied ones resolved; raises InputError when missing or of another shape."""
        candidates = [parameter, self.tied.get(parameter), *(k for k, v in self.tied.items() if v == parameter)]
        if parameter in self.tied:
            candidates = [candidates[1], candidates[0]]
        names = [self.name_of(c) for c in candidates if c is not None]
        name = next((n for n in names if n is not None), None)
        if name is None:
            raise InputError(
                f"{self.checkpoint.path} has no tensor {parameter!r}, which the model needs; "
                "the checkpoint is incomplete, download or save it again."
            )
        tensor = self.checkpoint.tensors[name]
        expected = self.parameters.get(parameter)
        if expected is not None and tensor.shape != expected:
            raise InputError(
                f"{name!r} in {tensor.location.path} has the shape {list(tensor.shape)}, but the model of config.json "
                f"wants {list(expected)}; the configuration belongs to another checkpoint."
            )
        self.used.add(name)
        return tensor

    def unused(self) -> dict[str, str]:
        """Checkpoint tensors that nothing used, each with the reason; raises InputError for those without one."""
        reasons: dict[str, str] = {}
        unexplained = []
        for name in self.checkpoint.tensors:
            if name in self.used:
                continue
            reason = self._reason(name)
            if reason is None:
                unexplained.append(name)
            else:
                reasons[name] = reason
        if unexplained:
            raise InputError(
                f"The model has no place for {len(unexplained)} tensor(s) of {self.checkpoint.path}: "
                f"{_listed(unexplained)}; check that config.json belongs to these weights."
            )
        return reasons

    def _reason(self, name: str) -> str | None:
        if (target := self.tied.get(self.rename(name))) is not None:
            self._require_same(name, target)
            return f"tied to {target}"
        if self.partial and self.rename(name) in self.parameters:
            return UNNEEDED
        never = (reason for pattern, reason in NEVER_PARAMETERS if pattern.search(name))
        return next(never, self.beyond)

    def _require_same(self, name: str, target: str) -> None:
        """A second copy of a tied weight may be left out; a weight of its own may not (transformers unties the two)."""
        tensor, kept = self.checkpoint.tensors[name], self[target]
        if not _same(tensor, kept):
            raise InputError(
                f"{name} in {tensor.location.path} is not {kept.name}, to which config.json ties it; "
                "set tie_word_embeddings to false there if it is meant."
            )


def _same(left: StoredTensor, right: StoredTensor) -> bool:
    """Whether two tensors hold the same values, as floats or decoded."""
    if left.shape != right.shape:
        return False
    step = max(1, COMPARED_AT_ONCE // max(1, left.size // max(1, left.shape[0])))
    starts = range(0, left.shape[0], step)
    return all(np.array_equal(left.rows(start, start + step), right.rows(start, start + step)) for start in starts)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - NAMED_AT_MOST} more" if len(names) > NAMED_AT_MOST else ""
    return ", ".join(names[:NAMED_AT_MOST]) + more


def finite_rows(tensor: StoredTensor, start: int, stop: int) -> Array:
    """Rows of a stored float tensor as float32; raises InputError at the first NaN or infinity."""
    return np.asarray(stored_rows(tensor, start, stop), dtype=np.float32)


def stored_rows(tensor: StoredTensor, start: int, stop: int) -> Array:
    """Rows of a stored float tensor in its own dtype; raises InputError at the first NaN or infinity."""
    rows = tensor.rows(start, stop)
    if not all_finite(rows):
        finite = np.isfinite(np.asarray(rows, np.float32))
        bad = start + int(np.argmin(finite.reshape(rows.shape[0], -1).all(1))) if rows.ndim else 0
        raise InputError(
            f"{tensor.name!r} in {tensor.location.path} holds NaN or infinity (row {bad}); "
            "the checkpoint is damaged, download or save it again."
        )
    return rows


EXPONENTS = {np.dtype(np.float16): 0x7C00, np.dtype(ml_dtypes.bfloat16): 0x7F80}
"""The bits of the exponent: all set in NaN and infinity."""


def all_finite(values: Array) -> bool:
    """Whether there is neither NaN nor infinity; 16-bit floats are looked at as bits, which is five times as fast."""
    mask = EXPONENTS.get(values.dtype)
    if mask is None:
        return bool(np.isfinite(np.asarray(values, np.float32)).all())
    bits = np.ascontiguousarray(values).view(np.uint16)
    return not bool(((bits & np.uint16(mask)) == mask).any())
