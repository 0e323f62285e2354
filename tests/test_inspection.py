"""Inspection: what it says about a checkpoint is so, and it says it fast."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    MixtralForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForAudioClassification,
)

from tests.checkpoint.gguf.cases import BY_NAME
from truecast.checkpoint import open_checkpoint
from truecast.cli import main
from truecast.errors import InputError
from truecast.inspection import Inspection, StorageGroup, inspect, recommended_precision, render
from truecast.inspection.costs import LOGIT_COPIES, LOGIT_ROWS, product_count, score_bytes, weight_bytes
from truecast.inspection.model import WHOLE_ROW
from truecast.request.options import precisions
from truecast.targets import TARGETS
from truecast.weights.names import MODULE_PRECISIONS, PRECISIONS

HIDDEN, INNER, VOCABULARY, LAYERS = 64, 96, 97, 3
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 16


def llama(path: Path, **changes: Any) -> Any:
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 512,
        **changes,
    }
    model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes))
    model.save_pretrained(path)
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_those_of_the_model(tied: bool, tmp_path: Path) -> None:
    model = llama(tmp_path, tie_word_embeddings=tied)
    assert inspect(tmp_path).parameters == model.num_parameters()


def test_a_tied_head_that_is_stored_again_is_not_counted_again(tmp_path: Path) -> None:
    model = llama(tmp_path, tie_word_embeddings=False)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert inspect(tmp_path).parameters == model.num_parameters() - VOCABULARY * HIDDEN


def test_the_shape_and_the_cache_are_those_of_the_model(tmp_path: Path) -> None:
    llama(tmp_path)
    found = inspect(tmp_path)
    assert (found.layers, found.heads, found.kv_heads, found.head_dim) == (LAYERS, HEADS, KV_HEADS, HEAD_DIM)
    assert (found.architecture, found.model_type) == ("LlamaForCausalLM", "llama")
    assert (found.context_length, found.vocabulary) == (512, VOCABULARY)
    assert found.kv_bytes_per_token == 2 * LAYERS * KV_HEADS * HEAD_DIM * 4


def test_names_of_other_architectures_are_understood(tmp_path: Path) -> None:
    BY_NAME["gpt2"].write(tmp_path / "model.gguf")
    found = inspect(tmp_path / "model.gguf")
    assert (found.layers, found.heads, found.kv_heads, found.head_dim, found.context_length) == (2, 4, 4, 16, 64)


def test_tensors_that_are_stored_alike_are_one_group(tmp_path: Path) -> None:
    model = llama(tmp_path)
    groups = {group.pattern: group for group in inspect(tmp_path).storage}
    assert groups["model.layers.*.mlp.up_proj.weight"].tensors == LAYERS
    assert groups["model.layers.*.mlp.up_proj.weight"].stored_as == "F32"
    assert groups["model.layers.*.mlp.up_proj.weight"].nbytes == LAYERS * HIDDEN * INNER * 4
    assert sum(group.nbytes for group in groups.values()) == 4 * model.num_parameters()


def test_int4_takes_half_a_byte_and_a_scale_per_block(tmp_path: Path) -> None:
    llama(tmp_path, tie_word_embeddings=True)
    projections = 2 * HIDDEN * HIDDEN + 2 * KV_HEADS * HEAD_DIM * HIDDEN + 3 * HIDDEN * INNER
    quantized = LAYERS * projections + VOCABULARY * HIDDEN
    norms = (2 * LAYERS + 1) * HIDDEN
    assert weight_bytes(open_checkpoint(tmp_path), "int4", 32).disk == quantized // 2 + quantized // 32 * 4 + norms * 4
    assert weight_bytes(open_checkpoint(tmp_path), "int8", 16).disk == quantized + quantized // 16 * 4 + norms * 4


def test_the_last_block_of_a_row_is_whole(tmp_path: Path) -> None:
    llama(tmp_path, intermediate_size=100, tie_word_embeddings=True)
    block_bytes = 16 + 4
    full_rows = VOCABULARY + LAYERS * (2 * HIDDEN + 2 * KV_HEADS * HEAD_DIM + 2 * 100)
    blocks = full_rows * (HIDDEN // 32) + LAYERS * HIDDEN * 4  # 100 = 3 · 32 + 4
    norms = (2 * LAYERS + 1) * HIDDEN
    assert weight_bytes(open_checkpoint(tmp_path), "int4", 32).disk == blocks * block_bytes + norms * 4


@pytest.mark.parametrize(("precision", "bytes_each"), [("fp32", 4), ("fp16", 2)])
def test_floats_take_their_bytes(precision: str, bytes_each: int, tmp_path: Path) -> None:
    model = llama(tmp_path)
    assert weight_bytes(open_checkpoint(tmp_path), precision).disk == bytes_each * model.num_parameters()


def test_every_target_and_precision_has_a_cost_and_less_precision_costs_less(tmp_path: Path) -> None:
    llama(tmp_path)
    choices = inspect(tmp_path).choices
    assert {(choice.target, choice.precision) for choice in choices} == {
        (target, precision) for target in TARGETS for precision in ("as-is", "fp32", "fp16", "int8", "int4")
    }
    of_one = {choice.precision: choice for choice in choices if choice.target == "genai"}
    for better, worse in (("int4", "int8"), ("int8", "fp16"), ("fp16", "fp32")):
        assert of_one[better].disk < of_one[worse].disk
        assert of_one[better].run_peak < of_one[worse].run_peak
        assert of_one[better].export_peak < of_one[better].proof_peak


def test_memory_to_prove_grows_by_what_the_proof_holds(tmp_path: Path) -> None:
    """The author's floats, what the runtime packs of products (codes: decoded, too), the files, and logits."""
    wide, narrow = tmp_path / "wide", tmp_path / "narrow"
    llama(wide, tie_word_embeddings=False, vocab_size=VOCABULARY + 1000)
    llama(narrow, tie_word_embeddings=False)
    peaks = [{c.precision: c for c in inspect(path).choices if c.target == "genai"} for path in (wide, narrow)]
    for precision, bytes_each, products in (("fp32", 4, 3), ("fp16", 2, 3), ("int8", 1 + 4 / 32, 2)):
        more, less = (found[precision].proof_peak for found in peaks)
        table_and_head, logits = 2 * 1000 * HIDDEN, 1000 * LOGIT_ROWS * LOGIT_COPIES * 4
        floats = 4 * table_and_head + 4 * products * table_and_head // 2
        assert more - less == floats + (4 + bytes_each) * table_and_head + logits


@pytest.mark.parametrize("tied", [True, False])
def test_a_table_that_is_the_head_as_well_is_a_product(tied: bool, tmp_path: Path) -> None:
    llama(tmp_path, tie_word_embeddings=tied)
    layers = LAYERS * (2 * HIDDEN * HIDDEN + 2 * KV_HEADS * HEAD_DIM * HIDDEN + 3 * HIDDEN * INNER)
    assert product_count(open_checkpoint(tmp_path)) == layers + VOCABULARY * HIDDEN


def test_codes_in_standard_operators_are_held_twice_while_they_are_loaded(tmp_path: Path) -> None:
    llama(tmp_path)
    found = {(choice.target, choice.precision): choice for choice in inspect(tmp_path).choices}
    for precision, times in (("fp32", 0), ("int4", 1)):
        portable, usual = found["portable", precision], found["onnxruntime", precision]
        assert portable.run_peak - usual.run_peak == times * usual.disk


def test_int4_is_recommended_on_a_cpu_and_fp16_on_a_gpu(tmp_path: Path) -> None:
    llama(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert recommended_precision(checkpoint, "cpu") == "int4"
    assert recommended_precision(checkpoint, "cuda") == "fp16"
    assert inspect(tmp_path).recommendation.reason


def test_a_model_that_translates_says_why_it_becomes_nothing(tmp_path: Path) -> None:
    _write_translator(tmp_path)
    found = inspect(tmp_path)
    assert found.choices == ()
    assert found.kv_bytes_per_token is None
    assert "encoder-decoders cannot be cast yet" in str(found.obstacle)
    assert found.recommendation is None


def test_an_encoder_has_no_cache_and_no_target_that_wants_one(tmp_path: Path) -> None:
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    BertModel(config).save_pretrained(tmp_path)
    found = inspect(tmp_path)
    assert found.obstacle is None and found.kv_bytes_per_token is None
    assert {choice.target for choice in found.choices} == {"onnxruntime", "portable"}
    assert (
        {choice.precision for choice in found.choices} == {*PRECISIONS, *MODULE_PRECISIONS} == {*precisions("module")}
    )
    assert found.recommendation.precision == "fp32"


def test_recordings_of_fixed_length_are_proven_in_nine_rows(tmp_path: Path) -> None:
    """Measured with these two layers and 64 channels: 1.19 GB, of which 0.65 are scores."""
    sizes = {f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in (("layers", 2), ("ffn_dim", 128))}
    config = WhisperConfig(d_model=64, vocab_size=300, encoder_attention_heads=4, pad_token_id=0, **sizes)
    WhisperForAudioClassification(config).save_pretrained(tmp_path)
    found = next(choice for choice in inspect(tmp_path).choices if choice.precision == "fp32")
    assert score_bytes(open_checkpoint(tmp_path)) == 2 * 9 * 4 * 1500**2 * 4
    assert found.proof_peak == pytest.approx(1.19e9, rel=0.2)


def test_experts_without_a_cache_are_offered_nothing(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}
    config = MixtralConfig(vocab_size=50, num_key_value_heads=2, num_local_experts=2, **sizes)
    MixtralForSequenceClassification(config).save_pretrained(tmp_path)
    found = inspect(tmp_path)
    assert (found.choices, found.recommendation) == ((), None)
    assert "experts are cast in decoders only" in str(found.obstacle)


def test_products_of_integers_take_a_byte_for_a_weight_and_a_scale_for_a_row(tmp_path: Path) -> None:
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, vocab_size=50)
    model = BertModel(config)
    model.save_pretrained(tmp_path)
    products = [p for name, p in model.named_parameters() if p.ndim == 2 and "embeddings" not in name]
    floats = model.num_parameters() - sum(p.numel() for p in products)
    size = weight_bytes(open_checkpoint(tmp_path), "int8-dynamic")
    assert size.disk == 4 * floats + sum(p.numel() + 4 * p.shape[0] for p in products)


def _write_translator(folder: Path) -> None:
    config = T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(folder)


# Quantized checkpoints -----------------------------------------------------------------------------------------------

DATA = Path(__file__).parent / "data"


def groups_of(found: Inspection) -> dict[str, StorageGroup]:
    """The groups by their pattern, which must be told apart by it."""
    assert len({group.pattern for group in found.storage}) == len(found.storage)
    return {group.pattern: group for group in found.storage}


def test_each_group_says_how_many_bits_a_weight_takes_and_what_becomes_of_it() -> None:
    found = inspect(DATA / "gptqmodel-act-order")
    groups = groups_of(found)
    down, table = groups["model.layers.*.mlp.down_proj.weight"], groups["model.embed_tokens.weight"]
    per_group = 16 + 4  # a float16 scale and a 4-bit zero point for 32 weights; 4 bytes of g_idx for each column
    weights = down.weights // down.tensors
    bits = 4 + per_group / 32 + 32 * (weights // 64) / weights
    assert down.bits_per_weight == pytest.approx(bits)
    assert (down.group_size, down.is_float) == (32, False)
    assert down.becomes == "MatMulNBits 4 bits, block 32, columns reordered"
    assert (table.group_size, table.is_float, table.bits_per_weight) == (None, True, 16)
    assert table.becomes == "dense float32, bfloat16 on disk"


def test_codes_in_wider_slots_are_counted() -> None:
    group = groups_of(inspect(DATA / "auto-round-5bit-asym"))["model.layers.*.mlp.up_proj.weight"]
    assert group.becomes == "MatMulNBits 8 bits, block 32"
    codes, scales, zeros = group.weights, 2 * group.weights // 32, group.weights // 32
    assert group.as_is_bytes == codes + scales + zeros


def test_the_size_loaded_is_with_float32_scales_and_tables() -> None:
    checkpoint = open_checkpoint(DATA / "auto-round-4bit-asym")
    size = weight_bytes(checkpoint, "as-is")
    quantized = sum(tensor.size for tensor in checkpoint.tensors.values() if tensor.encoding is not None)
    table = checkpoint.tensors["model.embed_tokens.weight"].size
    scales_grow = (4 - 2) * quantized // 32
    assert size.memory - size.disk == scales_grow + 4 * table  # bfloat16 rows are looked up, float32 ones multiplied


def test_a_scale_per_row_is_a_whole_row() -> None:
    group = groups_of(inspect(DATA / "bitsandbytes-int8"))["model.layers.*.mlp.up_proj.weight"]
    assert group.group_size == WHOLE_ROW


def test_modules_that_stay_in_float_are_named_one_layer_alone_where_others_differ() -> None:
    table = "model.embed_tokens"
    for name, modules in {
        "bitsandbytes-nf4": (table,),
        "gptqmodel-dynamic-head": (table, "model.layers.*.self_attn.k_proj"),
        "compressed-tensors-integers": (table, "model.layers.1.mlp.down_proj"),
    }.items():
        assert inspect(DATA / name).left_in_float == modules


def test_tensors_that_no_weight_needs_are_counted_by_reason() -> None:
    ignored = inspect(DATA / "auto-round-ct-fp8").ignored
    assert ignored == {"it scales quantized activations, and the products here take them in float": 14}


def test_as_is_is_recommended_for_a_quantized_checkpoint() -> None:
    checkpoint = open_checkpoint(DATA / "gptqmodel-act-order")
    assert {recommended_precision(checkpoint, provider) for provider in ("cpu", "cuda")} == {"as-is"}


def test_a_quantized_model_that_is_no_decoder_becomes_nothing(tmp_path: Path) -> None:
    for file in (DATA / "gptqmodel-act-order").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "is_encoder_decoder": True}))
    found = inspect(tmp_path)
    assert (found.choices, {group.becomes for group in found.storage}) == ((), {""})
    assert "What as-is makes of it" not in shown(tmp_path)


def named_quantizer(path: Path, method: str) -> None:
    """A float checkpoint whose configuration names a quantizer."""
    llama(path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))


def test_a_quantizer_that_quantized_nothing_is_noticed_and_the_floats_are_read(tmp_path: Path) -> None:
    named_quantizer(tmp_path, "awq")
    found = inspect(tmp_path)
    assert (found.quantization, found.recommendation.precision, found.left_in_float) == (None, "int4", ())
    assert len(found.notices) == 1
    assert found.notices[0][:60] in shown(tmp_path)
    assert "awq" in found.notices[0]


def test_an_unknown_quantizer_is_refused(tmp_path: Path) -> None:
    named_quantizer(tmp_path, "nonesuch")
    with pytest.raises(InputError, match="quantized by 'nonesuch', which is not known"):
        inspect(tmp_path)


def test_the_tables_show_how_it_is_quantized_and_what_becomes_of_it() -> None:
    text = shown(DATA / "auto-round-5bit-asym")
    for part in (
        "by AutoRound, 5.66 bits",
        "Left in float",
        "model.embed_tokens",
        "What as-is makes of it",
        "block 32",
        "+",
    ):
        assert part in text
    assert "as-is on cpu: it is quantized already" in text


# Faces ----------------------------------------------------------------------------------------------------------------


def test_the_answer_is_json(tmp_path: Path) -> None:
    llama(tmp_path)
    plain = json.loads(json.dumps(inspect(tmp_path).to_dict()))
    assert plain["architecture"] == "LlamaForCausalLM"
    assert len(plain["choices"]) == 5 * len(TARGETS)


def shown(path: Path) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(render(inspect(path)))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_tables_show_what_was_found(tmp_path: Path) -> None:
    model = llama(tmp_path)
    text = shown(tmp_path)
    for part in (f"{model.num_parameters():,}", "LlamaForCausalLM", "model.layers.*.mlp.up_proj.weight", "512 tokens"):
        assert part in text
    assert ", ".join(TARGETS) in text
    assert "What as-is makes of it" not in text  # floats stay floats
    assert "int4 on cpu: each new token reads every weight once" in text


@pytest.mark.parametrize("source", ["auto-round-5bit-asym", "gpt-oss-mxfp4"])
def test_an_inspection_fits_80_columns_with_an_overview_first(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(DATA / source)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    titles = ["Checkpoint", "Recommended", "What it can become", "How it is stored", "What as-is makes of it"]
    places = [next(number for number, line in enumerate(lines) if line.startswith(title)) for title in titles]
    assert places == sorted(places)


def test_the_tables_show_the_obstacle(tmp_path: Path) -> None:
    _write_translator(tmp_path)
    assert "It can become nothing yet: its decoder attends to an encoder" in shown(tmp_path)


def seventy_billion(path: Path) -> Path:
    """A checkpoint of 70 B parameters whose bytes are holes in its file."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (128256, 8192), "model.norm.weight": (8192,)}
    for layer in range(80):
        prefix = f"model.layers.{layer}"
        for name in ("gate_proj", "up_proj"):
            shapes[f"{prefix}.mlp.{name}.weight"] = (28672, 8192)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (8192, 28672)
        for name in ("q_proj", "o_proj"):
            shapes[f"{prefix}.self_attn.{name}.weight"] = (8192, 8192)
    header, position = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, position + size]}
        position += size
    encoded = json.dumps(header).encode()
    with (path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + position)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256}
    (path / "config.json").write_text(json.dumps(config))
    return path


def timed_inspection(path: Path | str) -> float:
    """Seconds of processor time that the imports and the answer take in a process of their own."""
    code = (
        "import sys, time; start = time.process_time(); from truecast.inspection import inspect, render; "
        f"from rich.console import Console; Console(file=sys.stderr).print(render(inspect({str(path)!r}))); "
        "print(time.process_time() - start); assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return float(result.stdout)


def test_seventy_billion_parameters_are_inspected_in_under_three_seconds_without_torch(tmp_path: Path) -> None:
    assert timed_inspection(seventy_billion(tmp_path)) < 3


@pytest.mark.skipif(
    not os.environ.get("TRUECAST_GEMMA_GGUF"), reason="needs the real model: set TRUECAST_GEMMA_GGUF to its GGUF file"
)
def test_the_real_gemma_is_inspected_in_under_three_seconds_without_torch() -> None:
    assert timed_inspection(os.environ["TRUECAST_GEMMA_GGUF"]) < 3
    assert inspect(os.environ["TRUECAST_GEMMA_GGUF"]).parameters == 268_098_176


def test_a_model_of_recurrent_states_has_the_targets_that_carry_them(tmp_path: Path) -> None:
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=HIDDEN, state_size=8, num_hidden_layers=LAYERS)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    found = inspect(tmp_path)
    assert {choice.target for choice in found.choices} == {"onnxruntime", "portable"}
    assert found.kv_bytes_per_token is None
