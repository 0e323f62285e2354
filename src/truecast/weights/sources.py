"""Finding the checkpoint's tensor for each parameter of the model, strictly and both ways."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from truecast.checkpoint.model import Array, Checkpoint, StoredTensor
from truecast.errors import InputError

NEVER_PARAMETERS = (
    (re.compile(r"(^|\.)rotary_emb\.(inv_freq|cos_cached|sin_cached)$"), "a rotary table, made anew from config.json"),
    (re.compile(r"\.attn\.(bias|masked_bias)$|\.attention\.(bias|masked_bias)$"), "a causal mask kept as a buffer"),
)
"""Tensors that older versions of transformers saved although they are no weights."""

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
    """

    checkpoint: Checkpoint
    parameters: Mapping[str, tuple[int, ...]]
    tied: Mapping[str, str]
    rename: Callable[[str], str]
    used: set[str] = field(default_factory=set)
    _stored: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self._stored = {self.rename(name): name for name in self.checkpoint.tensors}

    def name_of(self, parameter: str) -> str | None:
        """The checkpoint's name for a parameter, or None when it holds no such tensor."""
        return self._stored.get(parameter)

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
            return f"tied to {target}"
        return next((reason for pattern, reason in NEVER_PARAMETERS if pattern.search(name)), None)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - NAMED_AT_MOST} more" if len(names) > NAMED_AT_MOST else ""
    return ", ".join(names[:NAMED_AT_MOST]) + more


def finite_rows(tensor: StoredTensor, start: int, stop: int) -> Array:
    """Rows of a stored float tensor as float32; raises InputError at the first NaN or infinity."""
    rows = np.asarray(tensor.rows(start, stop), dtype=np.float32)
    if not np.isfinite(rows).all():
        bad = start + int(np.argmin(np.isfinite(rows).reshape(rows.shape[0], -1).all(1))) if rows.ndim else 0
        raise InputError(
            f"{tensor.name!r} in {tensor.location.path} holds NaN or infinity (row {bad}); "
            "the checkpoint is damaged, download or save it again."
        )
    return rows
