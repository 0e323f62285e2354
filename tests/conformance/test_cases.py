"""The cases themselves: a matrix proves something only if its models are alive and their hazards can be seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from tokenizers import Tokenizer

from tests.conformance.cases import BY_NAME, CASES, REPRESENTATIVE, REQUIRED
from tests.conformance.recurrent_cases import RECURRENT_CASES
from tests.selection import chosen
from tests.tiny import END_TOKEN, END_TOKEN_ID, Case, tiny_checkpoint, tiny_model

SEQUENCE = 64
PROMISED_TYPES = [
    *("llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "smollm3"),
    *("olmo", "olmo2", "olmo3", "granite", "cohere", "cohere2", "stablelm", "starcoder2", "gpt2", "gpt_neox", "opt"),
    *("glm", "glm4", "nemotron", "helium", "exaone4", "seed_oss", "hunyuan_v1_dense", "ernie4_5", "arcee", "apertus"),
    *("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "gpt_oss", "dots1"),
]

LEAST_LOGIT_STD = 0.1
LEAST_HAZARD = 0.05
"""A hazard moves some logit by this share of the logits' standard deviation: a hundred times the proof's tolerance."""
ENTROPY_RANGE = (0.15, 0.99)
"""Mean entropy of an attention row over that of a uniform one."""

every_case = pytest.mark.parametrize("case", chosen(CASES, REPRESENTATIVE), ids=lambda case: case.name)
ATTENDING = [case for case in chosen(REQUIRED, REPRESENTATIVE) if case not in RECURRENT_CASES]
"""Whose every layer attends."""
required_case = pytest.mark.parametrize("case", chosen(REQUIRED, REPRESENTATIVE), ids=lambda case: case.name)


def tokens(batch: int = 2, length: int = SEQUENCE) -> torch.Tensor:
    """Random token ids [batch, length], the same at every call."""
    return torch.randint(0, END_TOKEN_ID, (batch, length), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: transformers.PreTrainedModel) -> torch.Tensor:
    """The model's logits for `tokens()`, float32 [batch, sequence, vocabulary]."""
    result: torch.Tensor = model(input_ids=tokens()).logits
    return result


def test_every_promised_type_has_a_case() -> None:
    assert set(PROMISED_TYPES) <= {case.config().model_type for case in REQUIRED}


def test_case_names_are_unique() -> None:
    assert len(BY_NAME) == len(CASES)
    assert set(REPRESENTATIVE) <= {case.name for case in REQUIRED}


@every_case
def test_logits_are_finite_and_spread(case: Case) -> None:
    result = logits(tiny_model(case))
    assert result.isfinite().all()
    assert result.std() > LEAST_LOGIT_STD


@required_case
def test_greedy_generation_with_the_cache_agrees_with_a_whole_sequence(case: Case) -> None:
    model = tiny_model(case)
    prompt = tokens(length=9)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    generated = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **options)
    with torch.no_grad():
        expected = model(input_ids=generated[:, :-1]).logits[:, 8:].argmax(-1)
    assert generated[:, 9:].tolist() == expected.tolist()
    assert len(set(expected.flatten().tolist())) > 1


@pytest.mark.parametrize(
    ("case", "hazard"),
    [
        pytest.param(case, hazard, id=f"{case.name}-{hazard}")
        for case in chosen(CASES, REPRESENTATIVE)
        for hazard in case.hazards
    ],
)
def test_undoing_a_hazard_changes_the_logits(case: Case, hazard: str) -> None:
    right, wrong = logits(tiny_model(case)), logits(tiny_model(case, **case.hazards[hazard]))
    assert (right - wrong).abs().max() > LEAST_HAZARD * right.std()


@pytest.mark.parametrize("case", ATTENDING, ids=lambda case: case.name)
def test_attention_is_neither_uniform_nor_on_one_token(case: Case) -> None:
    model = tiny_model(case)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        rows = [layer[:, :, -1] for layer in model(input_ids=tokens(), output_attentions=True).attentions]
    for row in rows:
        entropy = torch.special.entr(row).sum(-1) / (row > 0).sum(-1).log()
        assert ENTROPY_RANGE[0] < float(entropy.mean()) < ENTROPY_RANGE[1]


@required_case
@torch.no_grad()
def test_every_layer_matters(case: Case) -> None:
    model = tiny_model(case)
    before = logits(model)
    for layer in range(model.config.num_hidden_layers):
        weights = [p for name, p in model.named_parameters() if f".{layer}." in name and p.dim() > 1]
        for weight in weights:
            weight.copy_(weight.flip(0))
        assert (logits(model) - before).abs().max() > LEAST_HAZARD * before.std()
        for weight in weights:
            weight.copy_(weight.flip(0))


@pytest.mark.parametrize("name", ["llama", "llama_sharded", "llama_head_dim_64", "gpt2_as_first_published", "gpt_neox"])
def test_the_checkpoint_on_disk_is_the_model(name: str, tmp_path: Path) -> None:
    case = BY_NAME[name]
    folder = tiny_checkpoint(case, tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rounded = tiny_model(case)
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_(parameter.to(getattr(torch, case.stored)))
    assert torch.equal(logits(loaded), logits(rounded))


def test_storage_is_as_the_case_says(tmp_path: Path) -> None:
    folder = tiny_checkpoint(BY_NAME["llama_sharded"], tmp_path)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) >= BY_NAME["llama_sharded"].shards
    assert (folder / "model.safetensors.index.json").is_file()
    for file in files:
        with safe_open(file, "pt") as tensors:
            assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {"BF16"}  # noqa: SIM118


def test_the_same_case_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (tiny_checkpoint(BY_NAME["gemma3_text"], tmp_path / name) for name in ("first", "second"))
    names = sorted(file.name for file in first.iterdir())
    assert names == sorted(file.name for file in second.iterdir())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_the_tokenizer_takes_any_text(tmp_path: Path) -> None:
    folder = tiny_checkpoint(BY_NAME["llama_head_dim_64"], tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "Grüße, 世界! 12 apples\n"
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert max(ids) < END_TOKEN_ID == tokenizer.token_to_id(END_TOKEN)
    assert transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == ids
