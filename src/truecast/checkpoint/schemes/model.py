"""What a scheme is: one library's way to store quantized modules, found by the names of its tensors.

Data flow: the tensors of a folder → per scheme, the modules that carry one of its marks → `Scheme.read` makes of each
module's parts the tensors of the model, encoded → `Reading`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from truecast.checkpoint.encoding import Encoding, decode
from truecast.checkpoint.model import Array, Reader, StoredTensor
from truecast.errors import InputError


@dataclass(frozen=True)
class Settings:
    """What the checkpoint says of its quantization.

    `quantization` is the quantization_config, `model` the whole config.json, `metadata` the texts in the headers of the
    safetensors files. All of it is second to the tensors themselves.
    """

    folder: Path
    quantization: Mapping[str, Any]
    model: Mapping[str, Any]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Module:
    """One quantized module: its name, and its tensors by what follows the name (`qweight`, `scales`, …)."""

    name: str
    parts: Mapping[str, StoredTensor]

    def __getitem__(self, part: str) -> StoredTensor:
        """A part that must be there; raises InputError when it is not."""
        if part not in self.parts:
            stored = next(iter(self.parts.values())).location.path
            raise InputError(
                f"{stored} has {self.name}.{next(iter(self.parts))} but no {self.name}.{part}; "
                "the checkpoint is incomplete, download or save it again."
            )
        return self.parts[part]

    def get(self, part: str) -> StoredTensor | None:
        """A part that may be missing."""
        return self.parts.get(part)

    def fail(self, why: str, advice: str = "download or save it again") -> InputError:
        """The error for a module whose tensors contradict each other."""
        path = next(iter(self.parts.values())).location.path
        return InputError(f"{self.name} in {path} {why}; {advice}.")

    def matrix(self, part: str) -> tuple[int, int]:
        """Rows and columns of a part; raises InputError where it is no matrix."""
        shape = self[part].shape
        if len(shape) != 2:
            raise self.fail(
                f"has a {part} of shape {list(shape)}, and only matrices can be read",
                "give a checkpoint that stores each matrix on its own, or the float one",
            )
        return shape[0], shape[1]

    def encoded(
        self, encoding: Encoding, shape: tuple[int, int], stored_as: str, codes: str, reader: Reader | None = None
    ) -> StoredTensor:
        """The module's weight [out, in] in an encoding; `codes` is the part that holds the codes.

        `reader` decodes in the library's own order of operations, where the encoding's may round differently.
        """

        def read(start: int, stop: int) -> Array:
            return decode(encoding, shape[1], start, stop)

        return replace(self.decoded(shape, stored_as, codes, reader or read), encoding=encoding)

    def decoded(self, shape: tuple[int, int], stored_as: str, codes: str, reader: Reader) -> StoredTensor:
        """The module's weight [out, in] that no encoding can hold: float32, decoded as it is read."""
        return StoredTensor(
            name=f"{self.name}.weight",
            shape=shape,
            dtype=np.dtype(np.float32),
            stored_as=stored_as,
            location=self[codes].location,
            reader=reader,
            parts=tuple(self.parts.values()),
        )


@dataclass(frozen=True)
class Reading:
    """What a scheme made of one module: tensors under their names in the model, and parts without use, with reasons."""

    tensors: tuple[StoredTensor, ...]
    ignored: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Scheme:
    """One library's format.

    name: as the user knows it. methods: values of `quant_method` that announce it. marks: endings of tensors' names
    that announce a module. parts: all endings that belong to such a module. claims: whether the parts look like this
    scheme (several libraries use the same names). read: makes the model's tensors.
    """

    name: str
    methods: frozenset[str]
    marks: tuple[str, ...]
    parts: frozenset[str]
    claims: Callable[[Module, Settings], bool]
    read: Callable[[Module, Settings], Reading]

    def modules(self, tensors: Mapping[str, StoredTensor]) -> Iterator[Module]:
        """Every module that carries one of the marks."""
        names = {name[: -len(mark) - 1] for name in tensors for mark in self.marks if name.endswith(f".{mark}")}
        for name in sorted(names):
            parts = {part: tensors[f"{name}.{part}"] for part in self.parts if f"{name}.{part}" in tensors}
            yield Module(name, dict(sorted(parts.items())))
