"""One trace for all exports of one architecture: what differs between precisions and storages comes behind it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from truecast import exporting
from truecast.trace.decoder import Trace, trace_decoder


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

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "trace_decoder", trace)
        yield
