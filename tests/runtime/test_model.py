"""Text in, text out: streaming, batches, chat, and the numbers that go with it."""

from pathlib import Path

import pytest

from tests.runtime.graphs import VOCAB, write_artifact
from tests.runtime.tokenizer_files import EOS, byte_level, with_bos, write_tokenizer
from truecast.errors import InputError
from truecast.runtime.generate import Finish, GenerationOptions, Step
from truecast.runtime.model import TextModel
from truecast.runtime.text import INCOMPLETE

CHAT = "{% for m in messages %}{{ m.content }}{% endfor %}"
PROMPTS = ["ab", "hello", "Z"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    """The tiny decoder with a byte-level tokenizer, of which it knows the first ids."""
    folder = write_artifact(tmp_path_factory.mktemp("artifact"))
    tokenizer = byte_level()
    assert tokenizer.get_vocab_size() > VOCAB
    write_tokenizer(folder, with_bos(tokenizer), chat_template=CHAT)
    return TextModel.open(folder, threads=1)


def known(model: TextModel, prompt: str) -> list[int]:
    return [token % VOCAB for token in model.codec.encode(prompt)]


def test_a_batch_gives_what_its_prompts_give_alone(model: TextModel) -> None:
    prompts, options = [known(model, prompt) for prompt in PROMPTS], GenerationOptions(12)
    together = model.complete(prompts, options)
    alone = [model.complete([prompt], options)[0] for prompt in prompts]
    assert [(g.text, g.tokens) for g in together] == [(g.text, g.tokens) for g in alone]
    assert [g.prompt_tokens for g in together] == [len(prompt) for prompt in prompts]


def test_the_streamed_pieces_make_up_the_texts(model: TextModel) -> None:
    pieces: dict[int, str] = {0: "", 1: "", 2: ""}

    def collect(row: int, piece: str) -> None:
        assert piece
        pieces[row] += piece

    found = model.complete([known(model, prompt) for prompt in PROMPTS], GenerationOptions(12), collect)
    assert list(pieces.values()) == [generation.text for generation in found]
    assert [g.text for g in found] == [model.codec.decode(g.tokens) for g in found]


def test_a_prompt_gives_one_generation_and_a_list_gives_a_list(model: TextModel) -> None:
    one = model.generate("a", max_new_tokens=5)
    (same,) = model.generate(["a"], max_new_tokens=5)
    assert (one.text, one.tokens, one.finish) == (same.text, same.tokens, Finish.LENGTH)
    assert one.prompt_tokens == 2  # with the beginning token


def test_the_end_token_is_counted_but_not_written(model: TextModel) -> None:
    options = GenerationOptions(12, eos_token_ids=())
    tokens = model.complete([[5]], options)[0].tokens
    at = next(at for at in range(1, 12) if tokens[at] not in tokens[:at])
    found = model.complete([[5]], GenerationOptions(12, eos_token_ids=(tokens[at],)))[0]
    assert (found.tokens, found.finish) == (tokens[: at + 1], Finish.END)
    assert found.text == model.codec.decode(tokens[:at])


def test_half_a_character_at_the_end_is_written(model: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    half = model.codec.encode("a🙃")[1:-1]
    ends = [*[None] * (len(half) - 1), Finish.LENGTH]
    steps = [Step((token,), (end,)) for token, end in zip(half, ends, strict=True)]
    monkeypatch.setattr("truecast.runtime.model.generate", lambda *_: iter(steps))
    assert model.complete([[1]])[0].text == model.codec.decode(half) == "a" + INCOMPLETE


def test_a_seed_repeats_a_text(model: TextModel) -> None:
    texts = [model.generate("a", max_new_tokens=20, temperature=1.5, seed=seed).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_chat_goes_through_the_template(model: TextModel) -> None:
    options = GenerationOptions(6)
    answer = model.chat([{"role": "user", "content": "ab"}], options)
    plain = model.complete([model.codec.encode("ab", add_special_tokens=False)], options)[0]
    assert answer.tokens == plain.tokens


def test_the_timing_counts_tokens_of_all_rows(model: TextModel) -> None:
    timing = model.complete([[1, 2, 3], [4]], GenerationOptions(7, eos_token_ids=()))[0].timing
    assert (timing.prompt_tokens, timing.new_tokens, timing.rows) == (4, 14, 2)
    assert timing.prefill_rate == 4 / timing.prefill_seconds
    assert timing.decode_rate == 12 / timing.decode_seconds


def test_the_callers_own_time_is_not_counted(model: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 0.0}
    monkeypatch.setattr("truecast.runtime.model.time.perf_counter", lambda: clock["now"])

    def slow(row: int, piece: str) -> None:
        clock["now"] += 100.0

    timing = model.complete([[1, 2, 3]], GenerationOptions(5), slow)[0].timing
    assert (timing.prefill_seconds, timing.decode_seconds) == (0.0, 0.0)


def test_one_token_has_no_decode_rate(model: TextModel) -> None:
    assert model.generate("a", max_new_tokens=1).timing.decode_rate == 0.0


def test_an_empty_prompt_without_a_beginning_token_is_refused(model: TextModel) -> None:
    with pytest.raises(InputError, match="Prompt 0 has no tokens"):
        model.complete([[]])


def test_the_end_token_is_no_special_case_of_the_tokenizer(model: TextModel) -> None:
    assert model.codec.special_tokens["eos_token"] == EOS


def test_a_folder_that_is_no_artifact_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, byte_level())
    with pytest.raises(InputError, match="not a truecast artifact"):
        TextModel.open(tmp_path)
