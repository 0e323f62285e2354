"""Input that cannot be used: one sentence that names it, exit status 2, nothing left behind, nothing lost."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.checkpoint.gguf.cases import BY_NAME as GGUF_CASES
from tests.cli.conftest import Command

BLOCKS = "choose one of 16, 32, 64, 128, 256."
UP = "model.layers.1.mlp.up_proj.weight"
Damage = Callable[[Path], object]


def state(folder: Path) -> dict[str, str]:
    """Every file below `folder` with its content's digest, and every folder."""
    return {
        str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def config(**changes: object) -> Damage:
    def damage(source: Path) -> None:
        file = source / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return damage


def tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Damage:
    def damage(source: Path) -> None:
        file = source / "model.safetensors"
        stored = {name: np.array(array) for name, array in load_file(file).items()}
        change(stored)
        save_file(stored, file)

    return damage


def cut(source: Path) -> None:
    with (source / "model.safetensors").open("rb+") as file:
        file.truncate(file.seek(0, os.SEEK_END) - 100)


def only_an_index(source: Path) -> None:
    (source / "model.safetensors").unlink()
    index = {"weight_map": {UP: "model-00001-of-00002.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))


def only_a_pickle(source: Path) -> None:
    (source / "model.safetensors").rename(source / "pytorch_model.bin")


def plant(value: float) -> Callable[[dict[str, np.ndarray]], None]:
    def change(stored: dict[str, np.ndarray]) -> None:
        stored[UP][5, 7] = value

    return change


DAMAGED: dict[str, tuple[Damage, list[str]]] = {
    "truncated": (cut, ["model.safetensors is truncated or corrupt", "download"]),
    "no JSON": (lambda source: (source / "config.json").write_text("{"), ["config.json is not readable JSON"]),
    "a missing shard": (only_an_index, ["names the shard model-00001-of-00002.safetensors", "download"]),
    "a pickle": (only_a_pickle, ["pytorch_model.bin is a pickle", "python -c"]),
    "an unknown architecture": (config(model_type="nonesuch"), ["'nonesuch'", "update transformers"]),
    "code of its own": (
        config(model_type="nonesuch", auto_map={"AutoConfig": "code.Config"}),
        ["brings its own code", "--trust-remote-code"],
    ),
    "an unknown quantizer": (
        config(quantization_config={"quant_method": "nonesuch"}),
        ["is quantized by 'nonesuch'", "known are", "gptq", "Give the float checkpoint"],
    ),
    "codes without their scales": (
        tensors(lambda stored: stored.update({UP: np.ones((96, 32), np.uint8)})),
        [UP, "is stored as U8", "nothing beside it says what its codes mean"],
    ),
    "a missing weight": (tensors(lambda stored: stored.pop(UP)), [f"has no tensor '{UP}'"]),
    "a weight too many": (
        tensors(lambda stored: stored.update(extra=np.zeros(3, np.float32))),
        ["no place for 1 tensor(s)", "extra"],
    ),
    "a wrong shape": (tensors(lambda stored: stored.update({UP: stored[UP][:, 1:].copy()})), [UP, "has the shape"]),
    "NaN": (tensors(plant(np.nan)), [UP, "holds NaN or infinity (row 5)"]),
    "infinity": (tensors(plant(np.inf)), [UP, "holds NaN or infinity (row 5)"]),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_checkpoint_is_named_and_nothing_is_written(
    kind: str, truecast_: Command, checkpoint: Path, tmp_path: Path
) -> None:
    damage, expected = DAMAGED[kind]
    damage(checkpoint)
    before = state(tmp_path)
    answer = truecast_("export", checkpoint, tmp_path / "out", "--precision", "int4", "--no-verify")
    assert (answer.status, answer.out) == (2, "")
    for words in (*expected, str(checkpoint)):
        assert words in answer.sentence
    assert state(tmp_path) == before


def test_a_truncated_gguf_file_is_named(truecast_: Command, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    GGUF_CASES["llama"].write(file)
    os.truncate(file, file.stat().st_size - 100)
    answer = truecast_("inspect", file)
    assert (answer.status, answer.out) == (2, "")
    assert str(file) in answer.sentence


def test_a_path_that_does_not_exist_is_named(truecast_: Command, tmp_path: Path) -> None:
    for verb in (["inspect", tmp_path / "nowhere"], ["export", tmp_path / "nowhere", tmp_path / "out"]):
        answer = truecast_(*verb)
        assert (answer.status, answer.out) == (2, "")
        assert f"{tmp_path / 'nowhere'} does not exist" in answer.sentence


@pytest.mark.parametrize("verb", [["verify"], ["run"]])
def test_a_folder_that_is_no_artifact_is_named(verb: list[str], truecast_: Command, tmp_path: Path) -> None:
    answer = truecast_(*verb, tmp_path, *(["hello"] if verb == ["run"] else []))
    assert answer.status == 2
    assert f"{tmp_path} is not a truecast artifact" in answer.sentence


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--precision", "int5", "There is no precision 'int5'; did you mean 'int8'?"),
        (
            "--precision",
            "q",
            "There is no precision 'q'; choose one of as-is, fp32, fp16, int8, int4, bf16, int8-dynamic, int8-static, "
            "recommended.",
        ),
        ("--target", "genia", "There is no target 'genia'; did you mean 'genai'?"),
        ("--provider", "cdua", "There is no provider 'cdua'; did you mean 'cuda'?"),
        ("--activations", "in8", "There is no kind of activations 'in8'; did you mean 'int8'?"),
        (
            "--block-size",
            "48",
            f"MatMulNBits does not take the block size 48; {BLOCKS}",
        ),
        (
            "--block-size",
            "512",
            f"MatMulNBits does not take the block size 512; {BLOCKS}",
        ),
        ("--precison", "int4", "There is no option --precison; did you mean --precision?"),
    ],
)
def test_an_unknown_option_or_value_gets_the_nearest_one(
    option: str, value: str, sentence: str, truecast_: Command, pristine: Path, tmp_path: Path
) -> None:
    answer = truecast_("export", pristine, tmp_path / "out", option, value)
    assert (answer.status, answer.out, answer.sentence) == (2, "", sentence)
    assert state(tmp_path) == {}


def test_a_provider_that_is_not_installed_is_refused_with_its_wheel(
    truecast_: Command, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    answer = truecast_("export", pristine, tmp_path / "out", "--provider", "cuda")
    assert answer.status == 2
    assert "Provider 'cuda' is not in this ONNX Runtime" in answer.sentence
    assert "onnxruntime-gpu" in answer.sentence


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["exprt"], "No such command 'exprt'; did you mean 'export'?"),
        (["inspect"], "Missing argument 'SOURCE'; see `truecast inspect --help`."),
    ],
)
def test_wrong_words_are_one_sentence(words: list[str], sentence: str, truecast_: Command) -> None:
    answer = truecast_(*words)
    assert (answer.status, answer.out, answer.sentence) == (2, "", sentence)


@pytest.mark.parametrize(
    ("option", "value", "name"),
    [
        ("--temperature", -1, "temperature"),
        ("--top-k", -1, "top_k"),
        ("--top-p", 0, "top_p"),
        ("--seed", -1, "seed"),
        ("--max-new-tokens", 0, "max_new_tokens"),
    ],
)
def test_options_of_run_outside_their_range_are_named(
    option: str, value: float, name: str, truecast_: Command, pristine_artifact: Path
) -> None:
    answer = truecast_("run", pristine_artifact, "hello", option, value)
    assert (answer.status, answer.out) == (2, "")
    assert answer.sentence.startswith(f"{name} is {value}")


def test_a_prompt_longer_than_the_context_is_refused(truecast_: Command, pristine_artifact: Path) -> None:
    answer = truecast_("run", pristine_artifact, 129 * "x")
    assert (answer.status, answer.out) == (2, "")
    assert "129 tokens" in answer.sentence
    assert "context of 128" in answer.sentence


def test_what_is_at_out_stays_unless_forced(truecast_: Command, pristine: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("dear")
    before = state(tmp_path)
    for force in ([], ["--force"]):  # a folder that is no artifact is not replaced even by force
        answer = truecast_("export", pristine, tmp_path / "out", *force)
        assert (answer.status, answer.out) == (2, "")
        assert str(tmp_path / "out") in answer.sentence
        assert state(tmp_path) == before


def test_a_damaged_source_leaves_the_artifact_that_was_to_be_replaced(
    truecast_: Command, checkpoint: Path, artifact: Path, tmp_path: Path
) -> None:
    cut(checkpoint)
    before = state(tmp_path)
    assert truecast_("export", checkpoint, artifact, "--force", "--no-verify").status == 2
    assert state(tmp_path) == before


def test_a_full_disk_is_noticed_before_writing(
    truecast_: Command, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=4096))
    answer = truecast_("export", pristine, tmp_path / "out", "--no-verify")
    assert (answer.status, answer.out) == (2, "")
    assert "The disk has 4.10 kB free, but the weights need " in answer.sentence
    assert state(tmp_path) == {}


def test_a_disk_that_fills_up_while_writing_leaves_nothing(pristine: Path, tmp_path: Path) -> None:
    def allow_small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run(
        [sys.executable, "-c", EXPORT, str(pristine), str(tmp_path / "out")],
        preexec_fn=allow_small_files_only,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{tmp_path / 'out'} could not be written: File too large." in done.stderr
    assert state(tmp_path) == {}


EXPORT = """
import sys
from truecast.cli import main
sys.exit(main(["export", *sys.argv[1:], "--precision", "int4", "--no-verify"]))
"""
