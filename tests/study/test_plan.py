"""A plan is read whole, and whatever is wrong in it is named with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.study.building import PLAN, folder_with_plan, plan_of
from truecast.errors import InputError
from truecast.study.plan import Plan, read_plan
from truecast.study.variants import expand


def refused(folder: Path, plan: str) -> str:
    with pytest.raises(InputError) as raised:
        read_plan(folder_with_plan(folder, plan))
    sentence = str(raised.value)
    assert "\n" not in sentence
    return sentence.removeprefix(f"{folder / 'plan.toml'}: ")


def test_a_plan_has_defaults_and_absolute_paths(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert plan.name == "plan"
    assert plan.model.source == tmp_path / "model"
    assert plan.data.file == tmp_path / "rows.jsonl"
    assert plan.measure.threads == (1,)
    assert plan.measure.repeats == 3
    assert plan.baselines == ("bf16", "compile", "torchao-int8")


def test_a_plan_survives_the_way_to_a_worker(tmp_path: Path) -> None:
    for text in (PLAN, PLAN.replace("text =", "token_ids =").replace("threads = 1\n", "")):
        plan = plan_of(tmp_path, text)
        assert Plan.model_validate_json(plan.model_dump_json()) == plan


@pytest.mark.parametrize(
    ("wrong", "right", "sentence"),
    [
        ("[mesure]", "[measure]", "the plan has no key 'mesure'; did you mean 'measure'?"),
        ("repeat = 3", "repeats = 3", "[measure] has no key 'repeat'; did you mean 'repeats'?"),
        ("precison =", "precision =", "[variants 1] has no key 'precison'; did you mean 'precision'?"),
        ("sorce =", "source =", "[model] has no key 'sorce'; did you mean 'source'?"),
        ('"int9"', '"int8"', "variants 1: there is no precision 'int9'; did you mean 'int8'?"),
        ("batch = [0, 3]", "batch = [1, 3]", "measure.batch 1: input should be greater than or equal to 1; "),
        ("repeats = true", "repeats = 3", "measure.repeats: input should be a valid integer"),
        ('"modle"', '"model"', "model.source names modle, which is not at "),
    ],
)
def test_a_typo_is_named_with_the_nearest_right_word(tmp_path: Path, wrong: str, right: str, sentence: str) -> None:
    assert right in PLAN
    assert refused(tmp_path, PLAN.replace(right, wrong)).startswith(sentence)


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        ("[model", "is no TOML"),
        (PLAN.replace('text = "text"', ""), "data: give either text or token_ids"),
        (PLAN.replace('text = "text"', 'text = "text"\ntoken_ids = "ids"'), "data: give either text or token_ids"),
        (PLAN.split("[[variants]]", maxsplit=1)[0], "variants is missing; add it."),
        (PLAN.replace('source = "model"', ""), "model.source is missing; add it."),
        (PLAN + 'file = "model"\n', "an existing file cannot be given precision"),
        (PLAN.replace("warmup = 0", 'memory = "8 GO"'), 'measure.memory: write a number and a unit, as "8 GB"'),
        (PLAN.replace("threads = 1", 'threads = ["two"]'), "measure.threads 1: input should be a valid integer"),
        (PLAN + "opset = [2.5]", "variants 1.opset 1: input should be a valid integer"),
        (PLAN.replace("warmup = 0", "seconds = -1"), "measure.seconds: input should be greater than 0"),
        ('baselines = ["bf61"]\n' + PLAN, "baselines 1: there is no 'bf61'; did you mean 'bf16'?"),
        (PLAN.replace('source = "model"', 'source = "model"\nmodule = "model.build"'), "model.module is 'model.build'"),
        (PLAN.replace('source = "model"', 'source = "model"\nmodule = "no.py:build"'), "model.module names no.py"),
        (PLAN.replace("[measure]", '[data.classes]\nlogit = ["a"]\n\n[measure]'), "classes.logit belongs to no output"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(tmp_path: Path, plan: str, sentence: str) -> None:
    assert sentence in refused(tmp_path, plan)


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no plan at"):
        read_plan(tmp_path / "plan.toml")


def test_memory_has_units(tmp_path: Path) -> None:
    for text, size in (('"2 GiB"', 2 << 30), ('"1.5 GB"', 1_500_000_000), ("1000", 1000)):
        assert plan_of(tmp_path, PLAN.replace("warmup = 0", f"memory = {text}")).measure.memory == size


def names(folder: Path, variants: str, head: str = "baselines = []\n") -> list[str]:
    plan = head + PLAN.split("[[variants]]", maxsplit=1)[0] + variants
    return [variant.name for variant in expand(plan_of(folder, plan))]


def test_float32_in_pytorch_comes_first_whatever_the_plan_says(tmp_path: Path) -> None:
    assert names(tmp_path, "[[variants]]\nprecision = 'fp32'", "") == [
        "torch fp32",
        "torch bf16",
        "torch compile",
        "torchao int8",
        "onnx fp32",
    ]


def test_names_are_made_of_what_differs(tmp_path: Path) -> None:
    block = '[[variants]]\nprecision = ["fp32", "int8"]\nexporter = ["dynamo", "torchscript"]\nopset = 21\n'
    assert names(tmp_path, block) == [
        "torch fp32",
        "onnx dynamo fp32",
        "onnx dynamo int8",
        "onnx torchscript fp32",
        "onnx torchscript int8",
    ]


def test_blocks_add_up_and_the_same_combination_counts_once(tmp_path: Path) -> None:
    first = '[[variants]]\nprecision = ["fp32", "int8"]\n'
    second = '[[variants]]\nprecision = ["int8", "int4"]\nopset = [21, 23]\n'
    assert names(tmp_path, first + first + second) == [
        "torch fp32",
        "onnx fp32",
        "onnx int8",
        "onnx int8 opset 21",
        "onnx int8 opset 23",
        "onnx int4 opset 21",
        "onnx int4 opset 23",
    ]


def test_files_that_exist_are_variants_by_their_name(tmp_path: Path) -> None:
    (tmp_path / "theirs.onnx").touch()
    assert names(tmp_path, '[[variants]]\nfile = "theirs.onnx"\n') == ["torch fp32", "theirs"]


def test_a_gpu_brings_pytorch_on_the_gpu(tmp_path: Path) -> None:
    found = names(tmp_path, '[[variants]]\nprecision = "fp16"\nprovider = ["cpu", "cuda"]\n')
    assert found == ["torch fp32", "torch fp32 cuda", "onnx fp16 cpu", "onnx fp16 cuda"]


def test_variants_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Two variants of the plan are called 'onnx fp32'"):
        names(tmp_path, "[[variants]]\nprecision = 'fp32'\n[[variants]]\nprecision = 'fp32'\nverify = false\n")
