"""The opsets that help and manual name are those that an export takes."""

from __future__ import annotations

import pytest

from tests.docs.manual import REPOSITORY
from truecast.request.options import EXPORTERS, options
from truecast.targets import find_target
from truecast.trace.torchscript import LATEST

DECODERS, DYNAMO, RECORDED = find_target("portable").opsets, EXPORTERS["dynamo"], EXPORTERS["torchscript"]
RANGES = [f"{opsets[0]} to {opsets[-1]}" for opsets in (DECODERS, DYNAMO, RECORDED)]


@pytest.mark.parametrize("opsets", RANGES)
def test_help_and_the_table_of_options_name_every_range(opsets: str) -> None:
    (row,) = (
        line
        for line in (REPOSITORY / "docs" / "command-line.md").read_text().splitlines()
        if line.startswith("| `--opset`")
    )
    assert opsets in dict(options())["opset"].help
    assert opsets in row and f"default {LATEST}" in row


def test_the_pages_on_encoders_and_targets_name_theirs() -> None:
    encoders, targets = ((REPOSITORY / "docs" / name).read_text() for name in ("encoders.md", "targets.md"))
    assert f"`--opset` takes {RANGES[1]}" in encoders and f"the opsets {RANGES[2]}" in encoders
    assert f"opset {DECODERS[0]}, or with `--opset` one of {DECODERS[1]}\nto {DECODERS[-1]}" in targets
