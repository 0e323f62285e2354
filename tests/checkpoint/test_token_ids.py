"""Token ids that the model's own vocabulary does not have."""

from __future__ import annotations

import pytest

from truecast.checkpoint.token_ids import without_stray_padding


@pytest.mark.parametrize("padding", [97, 500, -98])
def test_a_padding_token_without_a_row_is_left_out_with_a_notice(padding: int) -> None:
    config, notices = without_stray_padding({"pad_token_id": padding, "vocab_size": 97, "x": 1})
    assert config == {"pad_token_id": None, "vocab_size": 97, "x": 1}
    assert ["pad_token_id" in notice and "vocab_size" in notice for notice in notices] == [True]


@pytest.mark.parametrize("config", [{"pad_token_id": 96, "vocab_size": 97}, {"pad_token_id": -1, "vocab_size": 97}, {}])
def test_others_are_kept(config: dict[str, int]) -> None:
    assert without_stray_padding(config) == (config, ())
