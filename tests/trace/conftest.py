"""Artifacts of tiny models, each exported once for all tests that look at its graph."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.cases import BY_NAME
from tests.tiny import tiny_checkpoint
from truecast.exporting import export
from truecast.request import Request

Exported = Callable[..., Path]
"""`exported(case, target, precision, **settings)`: the artifact of a case; its checkpoint is the folder beside it."""


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    made: dict[Any, Path] = {}

    def artifact(
        case: str,
        target: str = "onnxruntime",
        precision: str = "fp32",
        within: Callable[[], AbstractContextManager[Any]] = nullcontext,
        **settings: Any,
    ) -> Path:
        key = (case, target, precision, within, str(settings))
        if key not in made:
            folder = tmp_path_factory.mktemp("exported")
            changed = replace(BY_NAME[case], settings={**BY_NAME[case].settings, **settings})
            source = tiny_checkpoint(changed, folder / "checkpoint")
            with within():
                made[key] = export(source, folder / "out", Request(target=target, precision=precision, verify=False))
        return made[key]

    return artifact
