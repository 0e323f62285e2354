"""onnxruntime-genai's ids of a page of text against those of tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.runtime.tokenizer_files import byte_level, with_bos, write_tokenizer
from tests.targets.genai_runtime import MISSING
from tests.targets.test_genai import spaced
from truecast.proof.genai_tokens import genai_token_checks
from truecast.targets.genai import correct_tokenizer

pytest.importorskip("onnxruntime_genai", reason=MISSING)


def corrected(folder: Path) -> Path:
    config, tokenizer = (
        json.loads((folder / name).read_text()) for name in ("tokenizer_config.json", "tokenizer.json")
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(correct_tokenizer(config, tokenizer, 64)))
    return folder


@pytest.mark.parametrize("kind", [spaced, byte_level, lambda: with_bos(spaced())])
def test_the_ids_of_a_page_are_the_same(kind: object, tmp_path: Path) -> None:
    checks, _ = genai_token_checks(corrected(write_tokenizer(tmp_path, kind())))  # type: ignore[operator]
    assert [check.passed for check in checks] == [True], checks[0].detail


def test_a_class_that_splits_at_spaces_is_caught(tmp_path: Path) -> None:
    checks, _ = genai_token_checks(write_tokenizer(tmp_path, spaced()))
    assert not checks[0].passed
    assert "instead of" in checks[0].detail


def test_a_beginning_that_is_not_added_is_caught(tmp_path: Path) -> None:
    folder = corrected(write_tokenizer(tmp_path, byte_level()))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": True}))
    checks, _ = genai_token_checks(folder)
    assert checks[0].measured == 9


def test_a_class_that_cannot_be_loaded_is_a_failed_check(tmp_path: Path) -> None:
    checks, _ = genai_token_checks(write_tokenizer(tmp_path, byte_level(), tokenizer_class="NoSuchTokenizer"))
    assert not checks[0].passed


def test_other_vocabularies_are_not_compared(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram"}}))
    assert genai_token_checks(tmp_path)[0] == []
