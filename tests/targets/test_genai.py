"""The genai target: what is written, and that the real onnxruntime-genai runs it and says the same tokens as we do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.runtime.graphs import CONTEXT, HEAD_DIM, KV_HEADS, LAYERS, VOCAB, graph_info, write_artifact
from tests.runtime.tokenizer_files import SENTENCES, byte_fallback, byte_level, with_bos, write_tokenizer
from tests.targets.genai_runtime import Genai
from truecast.artifact import GraphInfo
from truecast.errors import InputError
from truecast.runtime.decoder import Decoder
from truecast.runtime.generate import GenerationOptions, generate
from truecast.targets import find_target
from truecast.targets.genai import (
    BYTE_LEVEL_CLASS,
    DEFAULT_MAX_LENGTH,
    GENERIC_TYPE,
    SENTENCEPIECE_CLASS,
    TYPES,
    correct_tokenizer,
    genai_config,
    model_type,
)

CONFIG = {"model_type": "qwen2", "hidden_size": 32, "num_attention_heads": 4, "eos_token_id": 96, "bos_token_id": 1}
PAD, END = 0, 96
PROMPTS = [[5, 9, 33, 2, 71, 8], [4, 8], [7, 7, 3, 1]]
NEW = 12


def info(**changes: Any) -> GraphInfo:
    return graph_info("right", True).model_copy(update=changes)


def test_the_decoder_section_follows_the_graph() -> None:
    decoder = genai_config(CONFIG, {}, info())["model"]["decoder"]
    assert (decoder["head_size"], decoder["num_key_value_heads"], decoder["num_hidden_layers"]) == (
        HEAD_DIM,
        KV_HEADS,
        LAYERS,
    )
    assert (decoder["hidden_size"], decoder["num_attention_heads"]) == (32, 4)
    assert set(decoder["inputs"]) == {"input_ids", "attention_mask", "past_key_names", "past_value_names"}


def test_other_spellings_of_the_shape_are_read() -> None:
    decoder = genai_config({"n_embd": 32, "n_head": 4}, {}, info())["model"]["decoder"]
    assert (decoder["hidden_size"], decoder["num_attention_heads"]) == (32, 4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen2", "qwen2"),
        ("phi3", "phi3"),
        ("hunyuan_v1_dense", "hunyuandensev1"),
        *((name, GENERIC_TYPE) for name in ("olmo2", "gpt2", None)),
    ],
)
def test_types_that_would_not_run_the_graph_as_it_is_become_the_generic_one(name: str | None, expected: str) -> None:
    assert model_type({"model_type": name}) == expected


def test_end_tokens_of_all_sources_are_joined_in_order() -> None:
    model = genai_config(CONFIG, {"eos_token_id": [50, 96]}, info(eos_token_ids=[7]))["model"]
    assert (model["eos_token_id"], model["bos_token_id"], model["pad_token_id"]) == ([7, 50, 96], 1, 7)


def test_a_padding_token_of_its_own_is_kept() -> None:
    assert genai_config(CONFIG, {"pad_token_id": 3}, info())["model"]["pad_token_id"] == 3


def test_special_tokens_that_nothing_states_are_left_out() -> None:
    assert not {"bos_token_id", "eos_token_id", "pad_token_id"} & set(genai_config({}, {}, info())["model"])


@pytest.mark.parametrize(("context", "expected"), [(512, 512), (131072, DEFAULT_MAX_LENGTH)])
def test_the_cache_is_not_made_for_the_longest_context(context: int, expected: int) -> None:
    config = genai_config(CONFIG, {}, info(context_length=context))
    assert (config["search"]["max_length"], config["model"]["context_length"]) == (expected, context)


def test_sampling_defaults_of_the_model_are_kept() -> None:
    search = genai_config(CONFIG, {"do_sample": True, "top_k": 20, "top_p": None}, info())["search"]
    assert (search["do_sample"], search["top_k"], "top_p" in search) == (True, 20, False)


@pytest.mark.parametrize("changes", [{"cache": None}, {"vocab_size": None}, {"context_length": None}])
def test_a_graph_that_is_no_decoder_is_refused(changes: dict[str, None]) -> None:
    with pytest.raises(InputError):
        genai_config({}, {}, info(**changes))


@pytest.mark.parametrize("name", ["Qwen2TokenizerFast", "TokenizersBackend", "LlamaTokenizer", None])
@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"type": "BPE"}, BYTE_LEVEL_CLASS),
        ({"type": "BPE", "byte_fallback": True}, SENTENCEPIECE_CLASS),
        ({"type": "WordLevel"}, None),
    ],
)
def test_the_tokenizer_class_follows_from_the_vocabulary(
    name: str | None, model: dict[str, Any], expected: str | None
) -> None:
    corrected = correct_tokenizer({"tokenizer_class": name, "x": 1, "model_max_length": 10**30}, {"model": model}, 77)
    assert (corrected["tokenizer_class"], corrected["x"]) == (expected or name, 1)
    assert corrected["model_max_length"] == 77


def test_a_damaged_tokenizer_config_is_named(tmp_path: Path) -> None:
    (write_tokenizer(tmp_path, byte_level()) / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_config\.json is not valid JSON"):
        find_target("genai").write_side_files(tmp_path, CONFIG, info())


def make_artifact(folder: Path, **config: object) -> Path:
    write_artifact(folder, "right")
    find_target("genai").write_side_files(folder, {**CONFIG, "pad_token_id": PAD, **config}, info())
    return folder


def ours(folder: Path, prompts: list[list[int]], new: int) -> list[list[int]]:
    options = GenerationOptions(new, eos_token_ids=())
    steps = list(generate(Decoder.open(folder, threads=1), prompts, options))
    return [[step.tokens[row] or 0 for step in steps] for row in range(len(prompts))]


def test_genai_says_the_same_tokens_prompt_by_prompt(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path)
    genai = Genai(folder)
    found = [genai.greedy([prompt], NEW)[0] for prompt in PROMPTS]
    assert found == ours(folder, PROMPTS, NEW)
    assert not {END} & {token for row in found for token in row}
    assert len({token for row in found for token in row}) > 5


def test_genai_says_the_same_tokens_for_a_batch_of_unequal_prompts(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path)
    assert Genai(folder).greedy(PROMPTS, NEW) == ours(folder, PROMPTS, NEW)


@pytest.mark.parametrize("name", sorted({*TYPES, "gpt2", "olmo2"}))
def test_genai_accepts_every_type_that_is_written(tmp_path: Path, name: str) -> None:
    folder = make_artifact(tmp_path, model_type=name)
    assert Genai(folder).greedy(PROMPTS[:1], NEW) == ours(folder, PROMPTS[:1], NEW)


def test_genai_ends_at_every_end_token(tmp_path: Path) -> None:
    write_artifact(tmp_path, "right")
    tokens = ours(tmp_path, PROMPTS[:1], NEW)[0]
    at = next(at for at in range(3, NEW) if tokens[at] not in tokens[:at])
    find_target("genai").write_side_files(tmp_path, {"pad_token_id": PAD, "eos_token_id": [END, tokens[at]]}, info())
    assert len(Genai(tmp_path).greedy(PROMPTS[:1], NEW)[0]) == at + 1


def test_genai_stops_at_the_written_length(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path)
    assert json.loads((folder / "genai_config.json").read_text())["search"]["max_length"] == CONTEXT
    assert len(Genai(folder).greedy(PROMPTS[:1], CONTEXT - 6)[0]) == CONTEXT - 6


def spaced() -> Tokenizer:
    """BPE of the SentencePiece kind that merges over runs of spaces, without a space in front."""
    tokenizer = byte_fallback()
    model = json.loads(tokenizer.to_str())
    for left, right in (("▁", "▁"), ("▁▁", "▁▁"), ("x", "▁")):
        for piece in (left, right, left + right):
            model["model"]["vocab"].setdefault(piece, len(model["model"]["vocab"]))
        model["model"]["merges"].insert(0, [left, right])
    model["decoder"]["decoders"].pop()
    model["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    return Tokenizer.from_str(json.dumps(model))


PAGE = [*SENTENCES, "x  = [1,   2]", "    indented\n\n  x  y", "trailing  "]


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("kind", [byte_level, byte_fallback, spaced])
@pytest.mark.parametrize("name", ["TokenizersBackend", "LlamaTokenizerFast", "PreTrainedTokenizerFast"])
def test_genai_tokenizes_as_the_tokenizers_library(
    tmp_path: Path, kind: Callable[[], Tokenizer], name: str, begins: bool
) -> None:
    tokenizer = with_bos(kind()) if begins else kind()
    write_tokenizer(tmp_path, tokenizer, tokenizer_class=name, add_bos_token=not begins)
    genai = Genai(make_artifact(tmp_path))
    loaded = genai.library.Tokenizer(genai.model)
    loaded.update_options(add_special_tokens="true")
    for text in PAGE if kind is not byte_fallback else PAGE[:3]:
        assert list(loaded.encode(text)) == tokenizer.encode(text).ids, text


def test_the_vocabulary_is_that_of_the_graph() -> None:
    assert genai_config({**CONFIG, "vocab_size": VOCAB + 31}, {}, info())["model"]["vocab_size"] == VOCAB
