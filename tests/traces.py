"""One trace for all exports of one architecture: what differs between precisions and storages comes behind it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from truecast import exporting, exporting_modules
from truecast.dialects.model import Dialect
from truecast.trace.author import AuthorModule
from truecast.trace.decoder import Trace, trace_decoder
from truecast.trace.module import ModuleTrace, trace_module


@contextmanager
def traced_once() -> Iterator[None]:
    """Exports take a copy of an earlier trace of the same configuration, dialect and dtype, where there is one."""
    traces: dict[str, Trace] = {}

    def trace(config: Any, *rest: Any, **options: Any) -> Trace:
        settings = {key: value for key, value in config.to_dict().items() if key != "quantization_config"}
        key = json.dumps([settings, str(rest), str(options)], sort_keys=True, default=str)
        if key not in traces:
            traces[key] = trace_decoder(config, *rest, **options)
        return replace(traces[key], model=traces[key].model.clone(), lowered=copy.copy(traces[key].lowered))

    modules: dict[str, ModuleTrace] = {}

    def trace_author(author: AuthorModule, dialect: Dialect, *rest: Any, **options: Any) -> ModuleTrace:
        if author.mode is None:  # its weights are no part of a configuration
            return trace_module(author, dialect, *rest, **options)
        inputs = [(spec.name, spec.example.shape, spec.example.dtype, str(spec.axes)) for spec in author.inputs]
        dtype = next(author.module.parameters()).dtype
        parts = [
            dtype,
            author.config,
            author.task,
            author.finish is None,
            inputs,
            dialect.name,
            dialect.opset,
            rest,
            options,
        ]
        key = json.dumps(parts, sort_keys=True, default=str)
        if key not in modules:
            modules[key] = trace_module(author, dialect, *rest, **options)
        return replace(modules[key], model=modules[key].model.clone(), lowered=copy.copy(modules[key].lowered))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "trace_decoder", trace)
        patch.setattr(exporting_modules, "trace_module", trace_author)
        yield
