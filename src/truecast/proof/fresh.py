"""The author's module as it was before its first call, and what calls change in it.

Some modules change while they run: a rotary embedding remembers the longest sequence, an attention exchanges itself for
another one at the first short input. What such a module computes then follows from what it was given before. So the
reference is put back before every call, and what had to be put back is remembered.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from truecast.trace.remembered import caching_functions, forget_results
from truecast.trace.repeatable import Plain, settings_of


@dataclass(frozen=True)
class _Part:
    """A module as it was when it was fresh: its plain attributes, its parts, its buffers that no checkpoint stores."""

    name: str
    module: nn.Module
    settings: Mapping[str, Plain]
    parts: Mapping[str, nn.Module | None]
    buffers: Mapping[str, Tensor]


@dataclass
class Fresh:
    """The parts of a module as they were, and the functions beside them that keep results.

    `changed` says what calls changed since. `draws` counts the times that numbers were drawn from the random generators
    of torch, NumPy or Python from one `restore` to the next.
    """

    parts: list[_Part]
    caching: Sequence[Any] = ()
    changed: dict[str, str] = field(default_factory=dict)
    draws: int = -1
    _generators: tuple[Any, ...] = ()

    @classmethod
    def of(cls, module: nn.Module) -> Fresh:
        """What `module` is now."""
        return cls([_part(name, part) for name, part in module.named_modules()], caching_functions(module))

    def restore(self) -> None:
        """Makes the module what it was."""
        forget_results(self.caching)
        generators = _generators()
        self.draws += generators != self._generators
        self._generators = generators
        for part in self.parts:
            now = settings_of(part.module)
            if now != part.settings:
                self._restore_settings(part, now)
            if part.module._modules != part.parts:
                self._note(part, "its parts", "others", "those of its construction")
                part.module._modules.clear()
                part.module._modules.update(part.parts)
            for name, buffer in part.buffers.items():
                part.module._buffers[name] = buffer.clone()

    def _restore_settings(self, part: _Part, now: Mapping[str, Plain]) -> None:
        for name in [*part.settings, *(name for name in now if name not in part.settings)]:
            if name not in part.settings:
                self._note(part, name, repr(now[name]), "not there")
                del part.module.__dict__[name]
            elif name not in now or now[name] != part.settings[name]:
                self._note(part, name, repr(part.module.__dict__.get(name)), repr(part.settings[name]))
                part.module.__dict__[name] = part.settings[name]

    def _note(self, part: _Part, name: str, now: str, before: str) -> None:
        full = f"{part.name}.{name}".removeprefix(".")
        self.changed.setdefault(full, f"{full} became {now} and was {before}")

    def notes(self) -> list[str]:
        """What is to be said of a module that changes."""
        if not self.changed:
            return []
        more = f", and {len(self.changed) - 1} more" if len(self.changed) > 1 else ""
        return [
            f"The author's module changes itself while it runs ({next(iter(self.changed.values()))}{more}); it was "
            "compared as it is before its first call."
        ]


def _part(name: str, module: nn.Module) -> _Part:
    names = module._non_persistent_buffers_set
    buffers = {key: buffer.clone() for key, buffer in module._buffers.items() if key in names and buffer is not None}
    return _Part(name, module, settings_of(module), dict(module._modules), buffers)


def _generators() -> tuple[Any, ...]:
    """The states of the generators that everybody shares."""
    numpy: Any = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), numpy[1].tobytes(), numpy[2]
