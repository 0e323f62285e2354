"""The table of targets."""

from pathlib import Path

import pytest

from tests.runtime.graphs import graph_info
from truecast.errors import InputError
from truecast.targets import TARGETS, Padding, find_target


def test_targets_are_found_by_their_names() -> None:
    assert [find_target(name).name for name in TARGETS] == ["onnxruntime", "genai", "portable"]


def test_a_misspelt_target_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'onnxruntime'"):
        find_target("onnxrutime")


def test_an_unknown_target_lists_the_known() -> None:
    with pytest.raises(InputError, match="choose one of onnxruntime, genai"):
        find_target("abacus")


def test_positions_are_an_input_exactly_where_any_mask_is_right() -> None:
    assert all(target.position_ids == (target.padding is Padding.ANY) for target in TARGETS.values())


def test_onnxruntime_adds_no_file(tmp_path: Path) -> None:
    find_target("onnxruntime").write_side_files(tmp_path, {}, graph_info("any", True))
    assert list(tmp_path.iterdir()) == []
