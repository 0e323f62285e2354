"""Which kernels a build of ONNX Runtime 1.31 has, from the tables that `scripts/make_kernel_table.py` writes.

A kernel registered for versions 13 and later takes a node only if the node's operator *is* version 13: a new version
in ONNX takes the operator off a provider until someone registers it again. A kernel with a closed range takes every
version of the range.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from truecast.diagnosis.schemas import Schema

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
NodeTypes = Mapping[str, frozenset[str]]
"""Dtypes of a node, "tensor(float)", by constraint and by the name of the input or output; unknown ones are absent."""


@dataclass(frozen=True)
class Kernel:
    """One registration: versions (`last` is None when open) and the dtypes that each constraint takes."""

    first: int
    last: int | None
    types: Mapping[str, frozenset[str]]

    def takes(self, since: int, types: NodeTypes) -> bool:
        """Whether it takes a node whose operator is of version `since`, with these dtypes."""
        in_range = since == self.first or (self.last is not None and self.first <= since <= self.last)
        return in_range and all(types.get(name, allowed) <= allowed for name, allowed in self.types.items())


@dataclass(frozen=True)
class Kernels:
    """The kernels of one provider in one build."""

    provider: str
    runtime: str
    table: Mapping[str, tuple[Kernel, ...]]

    def has(self, schema: Schema, types: NodeTypes) -> bool:
        """Whether a kernel takes a node of that schema with these dtypes."""
        return any(kernel.takes(schema.since, types) for kernel in self._of(schema))

    def knows(self, schema: Schema) -> bool:
        """Whether a kernel takes a node of that schema with some dtypes."""
        return self.has(schema, {})

    def dtypes(self, schema: Schema) -> frozenset[str]:
        """Every dtype that a kernel of that version takes somewhere."""
        taken = [kernel for kernel in self._of(schema) if kernel.takes(schema.since, {})]
        return frozenset().union(*(names for kernel in taken for names in kernel.types.values()))

    def _of(self, schema: Schema) -> tuple[Kernel, ...]:
        return self.table.get(f"{schema.domain}::{schema.name}", ())


@cache
def _document(build: str) -> Mapping[str, Any]:
    packed = resources.files("truecast.diagnosis").joinpath("data", f"{build}.json.gz").read_bytes()
    document: dict[str, Any] = json.loads(gzip.decompress(packed))
    return MappingProxyType(document)


@cache
def kernels_of(provider: str, build: str) -> Kernels:
    """The kernels of an execution provider in the build `cpu` or `gpu`."""
    document = _document(build)
    types = document["types"]
    table = {
        operator: tuple(
            Kernel(first, last, {name: frozenset(types[i] for i in held) for name, held in constraints.items()})
            for first, last, constraints in entries
        )
        for operator, entries in document["kernels"][provider].items()
    }
    return Kernels(provider, document["onnxruntime"], table)


@cache
def session_keys() -> frozenset[str]:
    """Every session configuration key that ONNX Runtime's library names."""
    return frozenset(_document("cpu")["session_keys"]) | frozenset(_document("gpu")["session_keys"])


BUILD_OF: Mapping[str, str] = MappingProxyType({"cpu": "cpu", "cuda": "gpu", "tensorrt": "gpu"})
"""The providers whose placement can be predicted; TensorRT leaves to CUDA what it does not take."""


def tables_for(provider: str) -> tuple[Kernels, ...]:
    """The kernels that ONNX Runtime tries in turn for a provider; none when there is no table."""
    build = BUILD_OF.get(provider)
    if build is None:
        return ()
    host = kernels_of(CPU, build)
    return (host,) if provider == "cpu" else (kernels_of(CUDA, build), host)
