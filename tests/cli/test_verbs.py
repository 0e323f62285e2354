"""Each verb: what it prints, its exit status, and that nothing else is printed when the output is piped."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

import truecast
from tests.cli.conftest import Command
from truecast.artifact import Certificate, Check, Status
from truecast.request.options import options
from truecast.targets import TARGETS
from truecast.weights.quantize import BLOCK_SIZES

FAILED = Certificate(
    status=Status.FAILED,
    checks=[
        Check(tier="static", name="opset", passed=True),
        Check(tier="parity", name="grid", passed=False, measured=0.5, limit=0.001, unit="logits", detail="batch 2"),
    ],
    notes=["planted"],
)


def test_inspect_says_what_the_checkpoint_is(truecast_: Command, pristine: Path) -> None:
    answer = truecast_("inspect", pristine)
    assert (answer.status, answer.err) == (0, "")
    for word in ("LlamaForCausalLM", "model.layers.*.mlp.up_proj.weight", "int4 on cpu: each new token"):
        assert word in answer.out


def test_inspect_as_json_is_the_inspection(truecast_: Command, pristine: Path) -> None:
    answer = truecast_("inspect", pristine, "--json")
    assert answer.status == 0
    assert json.loads(answer.out) == json.loads(json.dumps(truecast.inspect(pristine).to_dict()))


def test_export_chooses_a_precision_says_why_and_publishes(truecast_: Command, pristine: Path, tmp_path: Path) -> None:
    answer = truecast_("export", pristine, tmp_path / "out")
    assert (answer.status, answer.complaints) == (0, [])
    assert "int4, because each new token reads every weight once" in answer.out
    assert str(tmp_path / "out") in answer.out
    assert "proven: " in answer.out
    assert "price of the format: the next token changes in " in answer.out
    artifact = truecast.open(tmp_path / "out")
    assert (artifact.manifest.precision, artifact.manifest.certificate.status) == ("int4", Status.PROVEN)


def test_every_option_of_export_reaches_the_artifact(truecast_: Command, pristine: Path, tmp_path: Path) -> None:
    settings = {"target": "genai", "precision": "int8", "block-size": 64, "activations": "float"}
    options = [word for name, value in settings.items() for word in (f"--{name}", value)]
    answer = truecast_("export", pristine, tmp_path / "out", *options, "--no-verify", "--json")
    assert answer.status == 0
    document, manifest = json.loads(answer.out), truecast.open(tmp_path / "out").manifest
    assert (document["target"], document["precision"], document["status"]) == ("genai", "int8", "unproven")
    assert document["reason"] is None
    assert document["bytes"] == sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    assert document["peak_memory_bytes"] > 100e6
    assert 0 < document["seconds"] < 600
    assert (manifest.target, manifest.precision) == ("genai", "int8")
    assert manifest.settings == {"block_size": 64, "method": "rtn", "activations": "float"}


def test_force_replaces_an_artifact(truecast_: Command, pristine: Path, artifact: Path) -> None:
    before = artifact.stat().st_ino
    assert truecast_("export", pristine, artifact, "--precision", "fp32", "--no-verify", "--force").status == 0
    assert artifact.stat().st_ino != before
    assert truecast.open(artifact).manifest.precision == "fp32"


def test_a_failed_proof_gives_status_1_and_keeps_the_result_apart(
    truecast_: Command, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("truecast.proof.prove", lambda *_, **__: FAILED)
    answer = truecast_("export", pristine, tmp_path / "out", "--precision", "int4")
    assert (answer.status, answer.out) == (1, "")
    assert "not the same model" in answer.sentence
    assert str(tmp_path / "out.rejected") in answer.sentence
    assert [path.name for path in tmp_path.iterdir()] == ["out.rejected"]


def test_verify_prints_a_row_for_each_tier_and_the_verdict(truecast_: Command, pristine_artifact: Path) -> None:
    answer = truecast_("verify", pristine_artifact)
    assert (answer.status, answer.complaints) == (0, [])
    certificate = truecast.open(pristine_artifact).manifest.certificate
    tiers = {check.tier for check in certificate.checks} | {"files"}
    rows = [line for line in answer.out.splitlines() if line.startswith("│")]
    assert {row.strip("│").split("│")[0].strip() for row in rows} == tiers
    assert "The price of the activations: the next token changes in " in answer.out
    assert f"{pristine_artifact} is proven: " in answer.out


def test_verify_prints_every_check_where_all_are_asked_for(truecast_: Command, pristine_artifact: Path) -> None:
    answer = truecast_("verify", pristine_artifact, "--all")
    for check in truecast.open(pristine_artifact).manifest.certificate.checks:
        assert check.name in answer.out


def test_verify_as_json_is_the_certificate(truecast_: Command, pristine: Path, pristine_artifact: Path) -> None:
    answer = truecast_("verify", pristine_artifact, "--against", pristine, "--json")
    document = json.loads(answer.out)
    assert (answer.status, document["status"]) == (0, "proven")
    stated = truecast.open(pristine_artifact).manifest.certificate.checks
    names = [check["name"] for check in document["checks"]]
    assert names[-len(stated) :] == [check.name for check in stated]
    assert len(names) > len(stated)  # and whether the files are still those of the manifest


def test_a_proof_that_does_not_hold_gives_status_1(
    truecast_: Command, pristine_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("truecast.proof.verify", lambda *_, **__: FAILED)
    answer = truecast_("verify", pristine_artifact)
    assert answer.status == 1
    row = next(line for line in answer.out.splitlines() if "grid" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["parity", "0 of 1", "grid", "0.5", "≤ 0.001"]
    assert "failed: 1 of 2 checks passed" in answer.out
    assert "Failed: parity, grid: batch 2." in answer.out
    assert "Note: planted" in answer.out


def test_run_prints_the_text_and_nothing_else(truecast_: Command, pristine_artifact: Path) -> None:
    answer = truecast_("run", pristine_artifact, "hello", "--max-new-tokens", 12)
    expected = truecast.open(pristine_artifact).generate("hello", max_new_tokens=12)
    assert (answer.status, answer.out, answer.err) == (0, expected.text + "\n", "")


def test_run_as_json_is_the_generation(truecast_: Command, pristine_artifact: Path) -> None:
    options = {"max_new_tokens": 12, "temperature": 0.8, "top_k": 20, "top_p": 0.9, "seed": 3}
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    document = json.loads(truecast_("run", pristine_artifact, "hello", "--json", *words).out)
    expected = truecast.open(pristine_artifact).generate("hello", **options)
    assert (document["text"], document["tokens"]) == (expected.text, list(expected.tokens))
    assert document["prompt_tokens"] == 5
    greedy = truecast.open(pristine_artifact).generate("hello", max_new_tokens=12)
    assert document["tokens"] != list(greedy.tokens)


def test_the_version_is_that_of_the_package(truecast_: Command) -> None:
    assert truecast_("--version").out == f"truecast {truecast.__version__}\n"


def test_help_names_every_verb_and_every_value(truecast_: Command) -> None:
    assert truecast_().out == truecast_("--help").out
    for verb in ("inspect", "export", "verify", "run"):
        assert verb in truecast_("--help").out
    text = " ".join(truecast_("export", "--help").out.replace("│", " ").split())
    named = [value for name, said in options() if said.values and name != "task" for value in said.values("module")]
    for value in (*named, *TARGETS, *map(str, BLOCK_SIZES)):
        assert value in text


@pytest.mark.parametrize(
    ("words", "unwanted"),
    [
        (["--help"], "torch transformers onnxruntime numpy onnx"),
        (["export", "--help"], "torch transformers onnxruntime numpy"),
        (["inspect", "CHECKPOINT"], "torch transformers onnxruntime"),
        (["run", "ARTIFACT", "hello", "--max-new-tokens", "2"], "torch transformers"),
    ],
    ids=["help", "help of a verb", "inspect", "run"],
)
def test_light_verbs_import_nothing_heavy(
    words: list[str], unwanted: str, pristine: Path, pristine_artifact: Path
) -> None:
    places = {"CHECKPOINT": str(pristine), "ARTIFACT": str(pristine_artifact)}
    words = [places.get(word, word) for word in words]
    code = (
        f"import sys; from truecast.cli import main; status = main({words!r}); "
        f"sys.exit(status or ' '.join({set(unwanted.split())!r} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_on_a_terminal_the_stages_are_shown(pristine: Path, tmp_path: Path) -> None:
    words = ["export", str(pristine), str(tmp_path / "out"), "--no-verify"]
    shown = on_terminal(words)
    for word in ("Casting", "because", "trace", "weights", "100%", "unproven"):
        assert word in shown


def test_on_a_terminal_run_ends_with_its_speed(pristine_artifact: Path) -> None:
    assert "per second" in on_terminal(["run", str(pristine_artifact), "hello", "--max-new-tokens", "4"])


def on_terminal(words: list[str]) -> str:
    """What a terminal shows of a command that succeeds."""
    ours, theirs = pty.openpty()
    code = f"import sys; from truecast.cli import main; sys.exit(main({words!r}))"
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "160"}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 1 << 16):
                shown += piece
        except OSError:  # Linux's way of saying that the other end is closed
            os.close(ours)
    assert process.returncode == 0, shown.decode()
    return shown.decode()
