"""The author's model without weights: what can be built, and how buffers and names are found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from tests.conformance.cases import BY_NAME
from tests.tiny import tiny_model
from truecast.checkpoint.model import Checkpoint
from truecast.errors import InputError
from truecast.trace.skeleton import (
    build_decoder,
    checkpoint_renamer,
    fake_tensors,
    load_config,
    real_buffers,
    tied_names,
)


def checkpoint(config: Mapping[str, Any], path: Path = Path("checkpoint")) -> Checkpoint:
    return Checkpoint(path, "safetensors", config, {})


def skeleton(case: str) -> PreTrainedModel:
    with fake_tensors():
        return build_decoder(BY_NAME[case].config(), torch.float32)


def test_a_skeleton_holds_no_data() -> None:
    assert all(type(p.data).__name__ == "FakeTensor" for p in skeleton("llama").parameters())


def test_an_unknown_model_type_is_refused() -> None:
    with pytest.raises(InputError, match=r"'no_such_type' .* unknown to this version of transformers"):
        load_config(checkpoint({"model_type": "no_such_type"}))


@pytest.mark.parametrize("config", [{"hidden_size": "wide"}, {"num_hidden_layers": 2.5}])
def test_a_configuration_that_transformers_refuses_is_named(config: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"config\.json of checkpoint is not valid for 'llama'"):
        load_config(checkpoint({"model_type": "llama", **config}))


def test_a_checkpoints_own_code_does_not_run_unless_trusted(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}')
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    with pytest.raises(InputError, match="--trust-remote-code"):
        load_config(checkpoint(config, tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_model_that_is_no_language_model_is_refused() -> None:
    with pytest.raises(InputError, match="'vit' cannot be cast for text-generation"):
        build_decoder(AutoConfig.for_model("vit"), torch.float32)


@pytest.mark.parametrize("case", ["llama_rope_llama3", "llama_rope_yarn", "gemma3_text", "phi3_longrope"])
def test_buffers_that_no_checkpoint_stores_are_the_authors(case: str) -> None:
    model, expected = skeleton(case), dict(tiny_model(BY_NAME[case]).named_buffers())
    stored = set(model.state_dict())
    names = [name for name in expected if name not in stored]
    values = real_buffers(model, names)
    assert len(names) > 0
    assert all(torch.equal(values[name], expected[name]) for name in names)


NESTED = {
    "DPRQuestionEncoder": ("question_encoder.bert_model.embeddings.position_ids", torch.arange(64)[None]),
    "CLIPTextModel": ("embeddings.position_ids", torch.arange(64)[None]),
}


@pytest.mark.parametrize("name", NESTED)
def test_buffers_of_whole_numbers_are_filled_in_models_inside_of_models(name: str) -> None:
    buffer, expected = NESTED[name]
    kind: Any = getattr(transformers, name)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with fake_tensors():
        model = kind(kind.config_class(**sizes, vocab_size=50, max_position_embeddings=64)).eval()
    assert torch.equal(real_buffers(model, [buffer])[buffer], expected)


def test_a_buffer_that_the_author_does_not_fill_is_refused() -> None:
    model = skeleton("llama")
    model.model.layers[0].register_buffer("secret", torch.ones(3), persistent=False)
    with pytest.raises(InputError, match=r"how to fill its buffers model\.layers\.0\.secret"):
        real_buffers(model, ["model.layers.0.secret"])


def test_filling_buffers_leaves_the_skeleton_as_it_was() -> None:
    model = skeleton("llama")
    before = model.model.rotary_emb.inv_freq
    real_buffers(model, ["model.rotary_emb.inv_freq"])
    assert model.model.rotary_emb.inv_freq is before


def test_tied_weights_name_the_one_that_is_stored() -> None:
    assert tied_names(skeleton("llama_tied")) == {"lm_head.weight": "model.embed_tokens.weight"}
    assert tied_names(skeleton("llama")) == {}


@pytest.mark.parametrize(
    ("case", "stored", "name"),
    [
        ("gpt2", "wte.weight", "transformer.wte.weight"),
        ("gpt2", "transformer.wte.weight", "transformer.wte.weight"),
        ("llama", "lm_head.weight", "lm_head.weight"),
        ("llama", "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"),
    ],
)
def test_old_names_are_renamed_as_transformers_does(case: str, stored: str, name: str) -> None:
    assert checkpoint_renamer(skeleton(case))(stored) == name
