"""The outermost guard, and what every verb takes: `python -m truecast`, -h, --quiet, --verbose, --log-level."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import truecast
from tests.cli.conftest import Command

VERBS = ("inspect", "export", "verify", "diagnose", "study", "run")
WORDS = {"export": ["SOURCE", "OUT"], "run": ["OUT", "hello"], "study": ["PLAN", "--out", "OUT"]}


def unforeseen(*_: object, **__: object) -> None:
    raise ZeroDivisionError("of a bug")


@pytest.mark.parametrize("verb", VERBS)
def test_an_unforeseen_error_is_a_sentence_and_a_file_to_report(
    verb: str, truecast_: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(f"truecast.api.{'open' if verb in ('verify', 'run') else verb}", unforeseen)
    monkeypatch.setattr("truecast.cli.choice.choose", unforeseen)
    answer = truecast_(verb, *WORDS.get(verb, ["PLACE"]))
    assert (answer.status, answer.out) == (3, "")
    (file,) = tmp_path.iterdir()
    assert "nobody foresaw (ZeroDivisionError: of a bug); please report it with the file" in answer.sentence
    assert str(file) in answer.sentence
    for words in (f"truecast {verb} ", "Traceback", "in unforeseen", "onnxruntime "):
        assert words in file.read_text()


def test_the_module_is_the_command_line() -> None:
    command = [sys.executable, "-m", "truecast", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"truecast {truecast.__version__}\n", "")


BREAKING_IMPORT = """
import os, signal, sys, time
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "truecast.{module}":
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)
            except KeyboardInterrupt:
                {then}
sys.meta_path.insert(0, Finder())
from truecast.cli import main
sys.exit(main(["inspect", "nowhere"]))
"""


@pytest.mark.parametrize("module", ["cli.entry", "inspection"])
@pytest.mark.parametrize("then", ["raise", "raise ImportError('cut off')"])
def test_ctrl_c_while_something_is_imported_is_one_sentence(module: str, then: str) -> None:
    code = BREAKING_IMPORT.format(module=module, then=then)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted; nothing was written.\n")


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_has_examples_and_what_all_verbs_take(verb: str, truecast_: Command) -> None:
    text = truecast_(verb, "-h").out
    for words in ("Arguments:", "Options:", "Examples\n  truecast " + verb, "--quiet", "--verbose", "--log-level"):
        assert words in text


def test_options_of_export_stand_in_groups(truecast_: Command) -> None:
    text = truecast_("export", "--help").out
    assert text.index("\nQuantizing:") < text.index("--method") < text.index("\nModels without a cache:")


def test_a_shell_completes_verbs() -> None:
    environment = os.environ | {"_TRUECAST_COMPLETE": "complete_bash", "COMP_WORDS": "truecast ex", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "truecast"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["export"], "")


def test_stages_are_lines_where_there_is_no_terminal_and_none_if_quiet(
    truecast_: Command, pristine_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify(folder: Path, against: object, progress: object, **_: object) -> None:
        if progress is not None:
            for done in (0, 1, 2):
                progress("compare", done, 2)  # type: ignore[operator]
            progress("generate", 1, 1)  # type: ignore[operator]
        raise truecast.errors.InputError("It ends here.")  # type: ignore[attr-defined]

    monkeypatch.setattr("truecast.proof.verify", verify)
    assert truecast_("verify", pristine_artifact).err == "· compare\n· generate\nIt ends here.\n"
    assert truecast_("--quiet", "verify", pristine_artifact).err == "It ends here.\n"
    assert truecast_("verify", pristine_artifact, "-q").err == "It ends here.\n"
    timed = truecast_("verify", pristine_artifact, "--verbose").err.splitlines()
    assert [line.partition(":")[0] for line in timed[:3]] == ["· compare", "· compare", "· generate"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["inspect", "x", "--log-level", "loud"], "There is no log level 'loud'; choose one of debug, info, "),
        (["inspect", "x", "--log-level"], "There is no log level ''"),
        (["inspect", "x", "-q", "-v"], "--quiet and --verbose contradict each other"),
        (["inspect", ""], "A word of the command is empty"),
        (["export", "x", "out", "--calibration="], "--calibration= is empty"),
        (["run", "", "hello"], "A word of the command is empty"),
    ],
)
def test_words_that_say_nothing_are_refused(words: list[str], sentence: str, truecast_: Command) -> None:
    answer = truecast_(*words)
    assert (answer.status, answer.out) == (2, "")
    assert answer.sentence.startswith(sentence)


@pytest.mark.parametrize("option", [["--top-k", 4], ["--top-p", 0.5], ["--seed", 7]])
def test_a_choice_among_tokens_is_refused_where_the_likeliest_is_taken(
    option: list[object], truecast_: Command, pristine_artifact: Path
) -> None:
    answer = truecast_("run", pristine_artifact, "hello", *option)
    assert (answer.status, answer.out) == (2, "")
    assert answer.sentence.startswith(f"{option[0]} chooses among tokens, but at --temperature 0")


def test_a_pipe_is_no_checkpoint(truecast_: Command, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    answer = truecast_("inspect", tmp_path / "pipe")
    assert (answer.status, answer.out) == (2, "")
    assert "is a pipe, a socket or a device" in answer.sentence


def test_a_prompt_that_is_not_utf_8_is_one_sentence(truecast_: Command, pristine_artifact: Path) -> None:
    answer = truecast_("run", pristine_artifact, os.fsdecode(b"\xff\xfe"))
    assert (answer.status, answer.out) == (2, "")
    assert "is no Unicode character" in answer.sentence
