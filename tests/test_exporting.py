"""Export as a whole: what a request may ask, what is left when something fails, and that its bytes repeat."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from safetensors.numpy import load_file, save_file

import truecast
from tests.checkpoint.gguf.cases import BY_NAME as GGUF_CASES
from tests.conformance.cases import BY_NAME
from tests.test_artifact import MANIFEST
from tests.tiny import tiny_checkpoint
from truecast import describing, exporting
from truecast.artifact import Certificate, Check, Manifest, Status, read_manifest, sha256_of
from truecast.checkpoint import open_checkpoint
from truecast.checkpoint.model import Checkpoint
from truecast.describing import source_of
from truecast.errors import InputError, ProofError
from truecast.exporting import export
from truecast.exporting_modules import ModuleSource, export_module
from truecast.publishing import publish
from truecast.request import Request
from truecast.request.checks import require_decoder, require_module

Files = dict[str, bytes]


def files(folder: Path) -> Files:
    """Every file below a folder with its content; folders are named too."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


# Requests -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (Request(precision="fp32", target="onnxruntme"), "no target 'onnxruntme'; did you mean 'onnxruntime'?"),
        (Request(precision="int3"), "no precision 'int3'; did you mean 'int"),
        (Request(precision="fp32", activations="fp8"), "no kind of activations 'fp8'; choose one of int8, float"),
        (Request(precision="int4", block_size=512), "block size 512; choose one of 16, 32, 64, 128, 256"),
        (Request(precision="int8", block_size=0), "block size 0"),
        (Request(precision="int4", link_weights=True), "--link-weights keeps float32 bytes"),
        (Request(precision="as-is", link_weights=True), "--link-weights keeps float32 bytes"),
    ],
)
def test_a_request_that_no_export_can_take_is_refused_first(request_: Request, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        export("no such checkpoint", tmp_path / "out", request_)
    assert sentence in str(refused.value)


BOTH, MODULES = (require_decoder, require_module), (require_module,)


@pytest.mark.parametrize(
    ("request_", "checks", "option"),
    [
        (Request(precision="as-is", block_size=64), BOTH, "--block-size"),
        (Request(precision="fp32", block_size=7), BOTH, "--block-size"),
        (Request(precision="fp16", block_size=64), BOTH, "--block-size"),
        (Request(precision="int8-dynamic", block_size=64), MODULES, "--block-size"),
        (Request(precision="fp32", activations="float"), BOTH, "--activations"),
        (Request(precision="int8-dynamic", activations="float"), MODULES, "--activations"),
        (Request(precision="fp32", method="hqq"), MODULES, "--method"),
        (Request(precision="int4", link_weights=True), BOTH, "--link-weights"),
        (Request(precision="fp32", calibration=Path("text.txt")), BOTH, "--calibration"),
        (Request(precision="int4", calibration=Path("text.txt")), MODULES, "--calibration"),
        (Request(precision="bf16", calibration=Path("text.txt")), MODULES, "--calibration"),
    ],
)
def test_an_option_that_would_have_no_effect_is_refused(
    request_: Request, checks: tuple[Callable[[Request], None], ...], option: str
) -> None:
    for check in checks:
        with pytest.raises(InputError, match=f"{option} .*leave it out"):
            check(request_)


def test_an_option_that_has_an_effect_is_taken() -> None:
    require_decoder(Request(precision="as-is", activations="float"))
    require_decoder(Request(precision="fp32", keep=("lm_head=int4",), block_size=64, activations="float"))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (ModuleSource(Path("folder"), example_inputs=[1]), "example_inputs"),
        (ModuleSource(Path("folder"), factory="a:b", task="fill-mask"), "--task fill-mask"),
        (ModuleSource(Path("folder"), factory="a:b", module=torch.nn.Linear(1, 1)), "--module a:b"),
    ],
)
def test_what_is_said_of_a_module_and_would_not_be_heeded_is_refused(
    source: ModuleSource, words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"{words} .*leave"):
        export_module(source, tmp_path / "out", Request(precision="fp32"))


@pytest.mark.parametrize("given", [{"dynamic": {"input_ids": {0: "n"}}}, {"example_inputs": [1]}])
def test_axes_of_a_decoder_are_its_own(given: dict[str, Any], pristine: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is for models without a cache; .*leave it out"):
        truecast.export(pristine, tmp_path / "out", precision="fp32", **given)


@pytest.mark.parametrize("damage", ["{", "[" * 100_000, "[]", '{"eos_token_id": "</s>"}', '{"eos_token_id": [1, 2.5]}'])
def test_a_damaged_generation_config_is_refused_before_work(
    damage: str, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Path(shutil.copytree(pristine, tmp_path / "checkpoint"))
    (checkpoint / "generation_config.json").write_text(damage)
    monkeypatch.setattr(exporting, "_cast", lambda *_: pytest.fail("it was traced"))
    with pytest.raises(InputError, match=r"generation_config.json"):
        export(checkpoint, tmp_path / "out", Request(precision="fp32"))


def test_a_disk_too_small_for_the_estimate_is_refused_before_work(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=4096))
    monkeypatch.setattr(exporting, "_cast", lambda *_: pytest.fail("it was traced"))
    monkeypatch.setattr("truecast.exporting_modules.trace_module", lambda *_: pytest.fail("it was traced"))
    with pytest.raises(InputError, match=r"The disk has 4.10 kB free, but the weights need .* kB"):
        export(pristine, tmp_path / "out", Request(precision="int4"))
    source = ModuleSource(module=torch.nn.Linear(100, 100), example_inputs=torch.zeros(2, 100))
    with pytest.raises(InputError, match=r"but the weights need 40.40 kB"):
        export_module(source, tmp_path / "out", Request(precision="fp32"))
    assert not list(tmp_path.iterdir())


# Orchestration: the moves stand in ------------------------------------------------------------------------------------


@pytest.fixture
def source(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint whose cast is a file with the word "new"."""

    def cast(checkpoint: Checkpoint, folder: Path, *others: Any) -> Manifest:
        (folder / "content").write_text("new")
        return MANIFEST.model_copy(update={"certificate": Certificate(status=Status.UNPROVEN)})

    monkeypatch.setattr(exporting, "_cast", cast)
    return pristine


@pytest.fixture
def out(source: Path, tmp_path: Path) -> Path:
    """An artifact that is there already, with the word "old"."""
    export(source, tmp_path / "out", Request(precision="fp32", verify=False))
    (tmp_path / "out" / "content").write_text("old")
    return tmp_path / "out"


def proof_that(monkeypatch: pytest.MonkeyPatch, verdict: Callable[[], Certificate]) -> None:
    monkeypatch.setattr("truecast.proof.prove", lambda *args, **kwargs: verdict())


def certificate(passed: bool) -> Certificate:
    check = Check(tier="parity", name="exact", passed=passed, measured=0.5, limit=0.1, unit="logit", detail="at step 3")
    return Certificate(status=Status.PROVEN if passed else Status.FAILED, checks=[check])


def test_without_a_proof_the_certificate_says_so(source: Path, tmp_path: Path) -> None:
    folder = export(source, tmp_path / "out", Request(precision="fp32", verify=False))
    assert read_manifest(folder).certificate.status is Status.UNPROVEN


def test_a_proof_that_holds_is_published_with_its_certificate(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proof_that(monkeypatch, lambda: certificate(True))
    folder = export(source, tmp_path / "out", Request(precision="fp32"))
    stated = read_manifest(folder).certificate
    assert stated.manifest_sha256
    assert stated.model_copy(update={"manifest_sha256": ""}) == certificate(True)
    assert sorted(files(tmp_path)) == ["out", "out/content", "out/truecast.json"]


def test_a_proof_that_fails_keeps_the_result_apart(out: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proof_that(monkeypatch, lambda: certificate(False))
    before = files(out)
    with pytest.raises(ProofError, match=r"parity/exact measured 0.5 logit, limit 0.1; at step 3"):
        export(source, out, Request(precision="fp32", force=True))
    assert files(out) == before
    rejected = out.with_name("out.rejected")
    assert (rejected / "content").read_text() == "new"
    assert read_manifest(rejected).certificate.status is Status.FAILED
    assert sorted(path.name for path in out.parent.iterdir()) == ["out", "out.rejected"]


def test_force_replaces_an_artifact(out: Path, source: Path) -> None:
    export(source, out, Request(precision="fp32", verify=False, force=True))
    assert (out / "content").read_text() == "new"


def test_a_source_in_the_folder_that_would_be_replaced_is_refused(out: Path, source: Path) -> None:
    link = out.with_name("link")
    link.symlink_to(out)
    for given, text in ((link, None), (source, link / "content")):
        with pytest.raises(InputError, match=r"lies in .*out, which would be replaced"):
            export(given, out, Request(precision="int4", calibration=text, force=True))
        with pytest.raises(InputError, match=r"lies in .*out, which would be replaced"):
            export_module(ModuleSource(given), out, Request(precision="int8-dynamic", calibration=text, force=True))
    assert (out / "content").read_text() == "old"


def test_what_exists_is_refused_before_any_work(out: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "open_checkpoint", lambda source: pytest.fail("the checkpoint was opened"))
    with pytest.raises(InputError, match="already exists"):
        export(source, out, Request(precision="fp32"))


FAILURES = [RuntimeError("bug"), KeyboardInterrupt(), InputError("damaged"), MemoryError()]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize(("owner", "move"), [(exporting, "_cast"), (publish, "write_manifest")])
def test_whatever_stops_an_export_leaves_out_as_it_was(
    owner: ModuleType, move: str, failure: BaseException, out: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, plain = files(out.parent), getattr(owner, move)

    def stopped(*args: Any) -> None:
        plain(*args)
        raise failure

    monkeypatch.setattr(owner, move, stopped)
    with pytest.raises(type(failure)):
        export(source, out, Request(precision="fp32", verify=False, force=True))
    assert files(out.parent) == before


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_a_proof_that_stops_leaves_out_as_it_was(
    failure: BaseException, out: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped() -> Certificate:
        raise failure

    proof_that(monkeypatch, stopped)
    before = files(out.parent)
    with pytest.raises(type(failure)):
        export(source, out, Request(precision="fp32", force=True))
    assert files(out.parent) == before


def test_a_disk_that_fills_up_is_one_sentence(out: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, manifest: Manifest) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = files(out.parent)
    monkeypatch.setattr(publish, "write_manifest", full)
    with pytest.raises(InputError, match="out could not be written: No space left on device"):
        export(source, out, Request(precision="fp32", verify=False, force=True))
    assert files(out.parent) == before


# The real thing -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def int4(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(pristine, tmp_path_factory.mktemp("int4") / "out", Request(precision="int4", verify=False))


def test_the_same_request_gives_the_same_bytes(pristine: Path, int4: Path, tmp_path: Path) -> None:
    again = export(pristine, tmp_path / "out", Request(precision="int4", verify=False))
    assert files(again) == files(int4)


def test_the_manifest_names_every_other_file_with_its_hash(int4: Path) -> None:
    listed = read_manifest(int4).files
    others = {"truecast.json", exporting.DATA_NAME}  # the manifest itself, and the weights, which have their own hashes
    assert listed == {file.name: sha256_of(file) for file in int4.iterdir() if file.name not in others}


def test_the_manifest_names_every_weight_with_its_hash(int4: Path) -> None:
    model = ir.load(int4 / "model.onnx")
    for weight in read_manifest(int4).weights:
        held = b"".join(model.graph.initializers[name].const_value.tobytes() for name in weight.initializers)
        assert weight.sha256 == sha256(held).hexdigest()


def test_the_manifest_names_the_source_and_its_hash(int4: Path, pristine: Path) -> None:
    found = read_manifest(int4).source
    digest = sha256((pristine / "model.safetensors").read_bytes()).hexdigest()
    assert (found.path, found.format) == (str(pristine), "safetensors")
    assert found.sha256 == {"model.safetensors": digest}


def test_a_source_that_is_a_link_keeps_its_name_under_which_its_hash_is(tmp_path: Path) -> None:
    link = tmp_path / "model.gguf"
    GGUF_CASES["gemma3"].write(tmp_path / "blob")
    link.symlink_to(tmp_path / "blob")
    checkpoint = open_checkpoint(link)
    assert Path(source_of(checkpoint, {}).path) == link
    assert [file.name for file in checkpoint.files] == [link.name]


def test_side_files_are_copied_as_they_are(int4: Path, pristine: Path) -> None:
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (int4 / name).read_bytes() == (pristine / name).read_bytes()


def test_every_tensor_of_the_checkpoint_is_used_or_ignored_with_a_reason(int4: Path, pristine: Path) -> None:
    manifest = read_manifest(int4)
    used = {source for weight in manifest.weights for source in weight.sources}
    assert used | manifest.ignored_tensors.keys() == set(load_file(pristine / "model.safetensors"))
    assert not used & manifest.ignored_tensors.keys()


def test_the_manifest_describes_the_graph_that_onnxruntime_sees(int4: Path) -> None:
    graph = read_manifest(int4).graph
    session = ort.InferenceSession(str(int4 / graph.file), providers=["CPUExecutionProvider"])
    for described, found in ((graph.inputs, session.get_inputs()), (graph.outputs, session.get_outputs())):
        assert [(x.name, x.shape) for x in described] == [(x.name, x.shape) for x in found]
    assert graph.cache is not None
    assert (graph.cache.layers, graph.cache.in_place, graph.cache.dtype) == (2, True, "float32")
    assert (graph.padding, graph.vocab_size, graph.context_length) == ("any", 320, 128)


def test_the_manifest_counts_what_was_lowered(int4: Path) -> None:
    assert read_manifest(int4).graph.lowered == {
        "activation": 2,
        "attention": 2,
        "embedding": 1,
        "linear": 15,
        "norm": 5,
        "rotary": 4,
    }


def test_end_tokens_of_both_configurations_are_joined(pristine: Path, int4: Path) -> None:
    assert read_manifest(int4).graph.eos_token_ids == [256]
    checkpoint = Checkpoint(
        Path(), "safetensors", {"eos_token_id": 7}, {}, {"generation_config.json": lambda: b'{"eos_token_id": [9, 7]}'}
    )
    assert describing.eos_token_ids(checkpoint) == [7, 9]


def test_a_tensor_that_the_model_has_no_place_for_stops_the_export(pristine: Path, tmp_path: Path) -> None:
    tensors = load_file(pristine / "model.safetensors")
    config = json.loads((pristine / "config.json").read_bytes())
    (tmp_path / "checkpoint").mkdir()
    save_file(tensors | {"model.extra.weight": tensors["model.norm.weight"]}, tmp_path / "checkpoint/model.safetensors")
    (tmp_path / "checkpoint" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"no place for 1 tensor\(s\) of .*: model.extra.weight"):
        export(tmp_path / "checkpoint", tmp_path / "out", Request(precision="fp32", verify=False))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_linked_weights_take_no_space_and_give_the_same_graph(pristine: Path, tmp_path: Path) -> None:
    folder = export(pristine, tmp_path / "out", Request(precision="fp32", link_weights=True, verify=False))
    assert (folder / "model.safetensors").samefile(pristine / "model.safetensors")
    data = folder / "model.onnx.data"
    assert not data.exists() or data.stat().st_size < (folder / "model.safetensors").stat().st_size / 100
    ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])


def test_the_end_of_a_table_of_positions_bounds_no_text_before_it(tmp_path: Path) -> None:
    """MPT cuts its biases, [heads, 1, positions], to the text; at the last position nothing is cut."""
    source = tiny_checkpoint(BY_NAME["mpt"], tmp_path / "source")
    folder = export(source, tmp_path / "out", Request(precision="fp32", verify=False))
    assert read_manifest(folder).graph.context_length == 128
