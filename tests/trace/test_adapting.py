"""An adapter is added to the weights of the author's model, whatever the checkpoint calls and stacks them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.adapters import factors, random_array, write_adapter
from tests.conformance.cases import BY_NAME
from tests.conformance.encoders import BY_NAME as ENCODERS
from tests.tiny import Case, tiny_checkpoint, tiny_model
from truecast.checkpoint import open_checkpoint
from truecast.checkpoint.model import Array, Checkpoint
from truecast.errors import InputError
from truecast.trace.conversion import as_parameters

QUERY = "model.layers.1.self_attn.q_proj"
CLOSE = 1e-5


def adapted(case: Case, folder: Path, tensors: dict[str, Array], **settings: object) -> tuple[Checkpoint, Checkpoint]:
    """A case's checkpoint without the adapter, and with it."""
    source = tiny_checkpoint(case, folder / "model")
    adapter = write_adapter(folder / "adapter", tensors, **settings)
    model = tiny_model(case)
    return as_parameters(open_checkpoint(source), model), as_parameters(open_checkpoint(source, adapter), model)


def shape_of(case: Case, parameter: str) -> tuple[int, ...]:
    return tuple(tiny_model(case).get_parameter(parameter).shape)


def test_only_the_weights_it_names_change(tmp_path: Path) -> None:
    case = BY_NAME["llama"]
    delta = factors(QUERY, *shape_of(case, f"{QUERY}.weight"))
    plain, whole = adapted(case, tmp_path, delta)
    a, b = delta.values()
    assert [name for name, tensor in whole.tensors.items() if "LoRA" in tensor.stored_as] == [f"{QUERY}.weight"]
    want = plain.tensors[f"{QUERY}.weight"].read() + 4 * b @ a
    np.testing.assert_allclose(whole.tensors[f"{QUERY}.weight"].read(), want, rtol=CLOSE, atol=CLOSE)
    assert (plain.notices, len(whole.notices)) == ((), 1)
    assert whole.notices[0].endswith("is added to 1 parameter.")


def test_an_expert_that_is_stored_alone_changes_in_its_stack(tmp_path: Path) -> None:
    case, name = BY_NAME["qwen3_moe"], "model.layers.1.mlp.experts.2.up_proj"
    shape = shape_of(case, "model.layers.1.mlp.experts.gate_up_proj")
    delta = factors(name, shape[1] // 2, shape[2])
    plain, whole = adapted(case, tmp_path, delta)
    stack = "model.layers.1.mlp.experts.gate_up_proj"
    want = plain.tensors[stack].read().copy()
    a, b = delta.values()
    want[2, shape[1] // 2 :] += 4 * b @ a
    np.testing.assert_allclose(whole.tensors[stack].read(), want, rtol=CLOSE, atol=CLOSE)


def test_a_head_of_its_own_is_brought_along(tmp_path: Path) -> None:
    case = ENCODERS["bert_sequence"]
    source = tiny_checkpoint(ENCODERS["bert"], tmp_path / "model")
    model = tiny_model(case)
    head = {f"classifier.{name}": random_array(*p.shape) for name, p in model.classifier.named_parameters()}
    query = "bert.encoder.layer.0.attention.self.query"
    delta = factors(query, *model.get_parameter(f"{query}.weight").shape)
    adapter = write_adapter(tmp_path / "adapter", {**head, **delta}, modules_to_save=["classifier", "score"])
    plain = open_checkpoint(source)
    whole = as_parameters(open_checkpoint(source, adapter), model)
    np.testing.assert_array_equal(whole.tensors["classifier.weight"].read(), head["classifier.weight"])
    stored = query.removeprefix("bert.") + ".weight"
    a, b = delta.values()
    np.testing.assert_allclose(whole.tensors[stored].read(), plain.tensors[stored].read() + 4 * b @ a, atol=CLOSE)


def test_what_the_model_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tensors for model\.layers\.9\.self_attn\.q_proj\.weight, which this Llama"):
        adapted(BY_NAME["llama"], tmp_path, factors("model.layers.9.self_attn.q_proj", 8, 8))


@pytest.mark.parametrize("name", ["model.embed_tokens", "lm_head"])
def test_a_tied_weight_of_which_one_half_changes_is_refused(name: str, tmp_path: Path) -> None:
    case = BY_NAME["qwen2"]
    rows, width = shape_of(case, "model.embed_tokens.weight")
    kinds = {f"{name}.lora_embedding_A": random_array(4, rows), f"{name}.lora_embedding_B": random_array(width, 4)}
    tensors = kinds if "embed" in name else factors(name, rows, width)
    with pytest.raises(InputError, match=f"changes {name}.weight, which config.json ties"):
        adapted(case, tmp_path, tensors)


def test_a_copy_of_a_tied_weight_is_refused(tmp_path: Path) -> None:
    case = BY_NAME["qwen2"]
    table = random_array(*shape_of(case, "model.embed_tokens.weight"))
    with pytest.raises(InputError, match=r"which config\.json ties"):
        adapted(case, tmp_path, {"model.embed_tokens.weight": table}, modules_to_save=["embed_tokens"])
