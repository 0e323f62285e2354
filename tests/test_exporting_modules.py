"""Encoders and other modules, end to end: what is published, what it computes, what is refused, what stays as it is."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

import truecast
from tests.encoders import LABELS, LAYERS_DYNAMIC, Layers, Massive, Recurrent, classifier, layers_examples, sentences
from tests.traces import traced_once
from truecast import exporting_modules
from truecast.artifact import Certificate, Check, Status
from truecast.errors import InputError, ProofError
from truecast.runtime.encoder import Tokens

TEXTS = ["a short text", "a text that is quite a bit longer than the first", "?"]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module", autouse=True)
def one_trace() -> Iterator[None]:
    """Folders are traced once for all precisions."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with traced_once():
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where checkpoints and artifacts lie that no test may change."""
    return tmp_path_factory.mktemp("modules")


@pytest.fixture(scope="module")
def layers() -> Layers:
    """In training mode, as users have it."""
    return Layers().train()


@pytest.fixture(scope="module")
def layers_artifact(folder: Path, layers: Layers) -> truecast.Artifact:
    return truecast.export(layers, folder / "layers", example_inputs=layers_examples(), dynamic=LAYERS_DYNAMIC)


@pytest.fixture(scope="module")
def source(folder: Path) -> Path:
    return classifier(folder / "classifier")


@pytest.fixture(scope="module")
def artifact(folder: Path, source: Path) -> truecast.Artifact:
    return truecast.export(source, folder / "out", precision="fp32")


def content(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def refusal(tmp_path: Path, source: Any, **options: Any) -> str:
    """What an export says that writes nothing."""
    before = set(tmp_path.iterdir())
    with pytest.raises(InputError) as refused:
        truecast.export(source, tmp_path / "refused", **options)
    assert set(tmp_path.iterdir()) == before
    return str(refused.value)


class TestAModuleInMemory:
    def test_it_is_proven_and_its_names_are_the_authors(self, layers_artifact: truecast.Artifact) -> None:
        manifest = layers_artifact.manifest
        assert manifest.certificate.status is Status.PROVEN
        assert (manifest.task, manifest.precision, manifest.source.format) == ("module", "fp32", "module")
        assert {tensor.name: tensor.shape for tensor in manifest.graph.inputs} == {
            "x": ["batch_size", "length", 8],
            "scale": ["batch_size", 12],
        }
        assert {tensor.name: tensor.shape for tensor in manifest.graph.outputs} == {
            "states": ["batch_size", "length", 12],
            "score": ["batch_size", 12],
        }
        assert manifest.graph.axes == {"batch_size": "1..", "length": "1..40"}
        assert manifest.graph.cache is None

    @pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 40), (9, 23)])
    def test_it_computes_what_the_module_does(
        self, layers: Layers, layers_artifact: truecast.Artifact, batch: int, length: int
    ) -> None:
        x, scale = torch.randn(batch, length, 8), torch.randn(batch, 12)
        quiet = Layers()
        quiet.load_state_dict(layers.state_dict())
        with torch.no_grad():
            want = quiet.eval()(x, scale)
        got = layers_artifact.run({"x": x.numpy(), "scale": scale.numpy()})
        assert list(got) == ["states", "score"]
        for name, tensor in want.items():
            np.testing.assert_allclose(got[name], tensor.numpy(), **CLOSE)

    def test_the_users_module_is_left_alone(self, layers: Layers, layers_artifact: truecast.Artifact) -> None:
        assert all(module.training for module in layers.modules())
        fresh = Layers().state_dict()
        assert all(torch.equal(tensor, fresh[name]) for name, tensor in layers.state_dict().items())
        assert all(parameter.requires_grad for parameter in layers.parameters())

    def test_it_is_proven_again_in_python(self, layers: Layers, layers_artifact: truecast.Artifact) -> None:
        again = truecast.open(layers_artifact.folder).verify(layers, example_inputs=layers_examples())
        assert again.status is Status.PROVEN
        assert {"files of the artifact", "state of the module"} <= {check.name for check in again.checks}

    def test_a_module_that_has_changed_is_not_the_one_cast(self, layers_artifact: truecast.Artifact) -> None:
        changed = Layers()
        with torch.no_grad():
            changed.conv.weight[0, 0, 0] += 1
        again = layers_artifact.verify(changed, example_inputs=layers_examples())
        failed = {check.name: check.detail for check in again.checks if not check.passed}
        assert again.status is Status.FAILED
        assert "not what it was" in failed["state of the module"]
        assert "conv.weight" in failed["weights are the checkpoint's"]

    def test_without_the_module_it_cannot_be_proven_again(self, layers_artifact: truecast.Artifact) -> None:
        with pytest.raises(InputError, match="was made from a module in memory; prove it again in Python"):
            layers_artifact.verify()

    def test_the_same_module_gives_the_same_bytes(self, layers: Layers, folder: Path, tmp_path: Path) -> None:
        made = [
            truecast.export(
                layers, tmp_path / name, example_inputs=layers_examples(), dynamic=LAYERS_DYNAMIC, verify=False
            ).folder
            for name in ("first", "second")
        ]
        assert content(made[0]) == content(made[1])
        assert {"model.onnx", "model.onnx.data", "truecast.json"} <= set(content(made[0]))

    @pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
    def test_other_precisions_are_proven(self, layers: Layers, tmp_path: Path, precision: str) -> None:
        options = {"example_inputs": layers_examples(), "dynamic": LAYERS_DYNAMIC}
        made = truecast.export(layers, tmp_path / "out", precision=precision, **options)
        assert made.manifest.certificate.status is Status.PROVEN
        assert layers.linear.weight.dtype is torch.float32

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"keep": ["linear=fp32"]}, "--keep does not go with bf16"),
            ({"save_optimized": True}, "--save-optimized rewrites the graph for this machine, whose processor has no"),
            ({"provider": "openvino"}, "bf16 is known in kernels of cuda or tensorrt only, not of openvino"),
        ],
    )
    def test_what_does_not_go_with_bfloat16_is_refused(
        self, layers: Layers, tmp_path: Path, options: dict[str, Any], sentence: str
    ) -> None:
        given = {"example_inputs": layers_examples(), "precision": "bf16"}
        assert sentence in refusal(tmp_path, layers, **given, **options)

    def test_the_graph_that_is_saved_for_this_machine_has_the_islands(self, tmp_path: Path) -> None:
        made = truecast.export(
            Massive(6e4), tmp_path / "out", precision="fp16", example_inputs=torch.randn(4, 8), save_optimized=True
        )
        passed = {check.name for check in made.manifest.certificate.checks if check.passed}
        assert "as saved against the original with these weights, output" in passed


class TwoTables(nn.Module):
    """Token ids that pick rows of two tables, and places that pick rows of a third; no class of transformers'."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.tones, self.places = nn.Embedding(64, 32), nn.Embedding(64, 32), nn.Embedding(512, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, input_ids: Tensor) -> Any:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        return self.head(self.words(input_ids) + self.tones(input_ids) + self.places(places))


def test_every_table_of_tokens_is_quantized_whatever_its_module_is(tmp_path: Path) -> None:
    ids = torch.arange(14).view(2, 7)
    made = truecast.export(TwoTables().eval(), tmp_path / "out", precision="int4", example_inputs=ids)
    packings = {info.sources[0]: info.packing for info in made.manifest.weights}
    assert all(packings[name].startswith("int4") for name in ("words.weight", "tones.weight", "head.weight"))
    assert packings["places.weight"] == "dense float32"


class TestALoop:
    def test_a_recurrent_layer_is_proven_for_any_batch(self, tmp_path: Path) -> None:
        made = truecast.export(Recurrent(), tmp_path / "out", example_inputs=torch.randn(2, 5, 8))
        assert made.manifest.certificate.status is Status.PROVEN
        assert [tensor.name for tensor in made.manifest.graph.outputs] == ["output_0", "output_1.0", "output_1.1"]

    def test_its_length_is_free_with_the_other_exporter_only(self, tmp_path: Path) -> None:
        options = {"example_inputs": torch.randn(2, 5, 8), "dynamic": {"x": {1: "length=1..30"}}}
        assert "The model fixes axis 1 of x (length) at 5" in refusal(tmp_path, Recurrent(), **options)
        made = truecast.export(Recurrent(), tmp_path / "out", exporter="torchscript", **options)
        assert made.manifest.certificate.status is Status.PROVEN


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * 2 if x.shape[1] > 10 else self.linear(x)


class TestRanges:
    def test_a_branch_on_the_size_is_refused_unless_the_range_is_asked_for(self, tmp_path: Path) -> None:
        module, example = Branching(), torch.randn(2, 5, 8)
        message = refusal(tmp_path, module, example_inputs=example, dynamic={"x": {1: "length"}})
        assert "beyond the sizes 2..10 of axis 1 of x (length)" in message
        made = truecast.export(
            module, tmp_path / "out", example_inputs=example, dynamic={"x": {0: "batch", 1: "length=1..10"}}
        )
        assert made.manifest.graph.axes == {"batch": "1..", "length": "1..10"}
        assert made.manifest.certificate.status is Status.PROVEN

    def test_an_array_of_another_shape_is_refused_at_run_time(self, layers_artifact: truecast.Artifact) -> None:
        x, scale = np.zeros((1, 3, 8)), np.zeros((1, 12))
        with pytest.raises(InputError, match=r"The input lacks 'scale'; the graph takes x, scale"):
            layers_artifact.run({"x": x})
        with pytest.raises(InputError, match=r"The input has 'z'; the graph takes x, scale"):
            layers_artifact.run({"x": x, "scale": scale, "z": x})
        with pytest.raises(InputError, match=r"The input x has the shape \[1, 3, 9\]; the graph takes"):
            layers_artifact.run({"x": np.zeros((1, 3, 9)), "scale": scale})


class TestAFolder:
    def test_a_classifier_answers_as_its_author(self, source: Path, artifact: truecast.Artifact) -> None:
        assert artifact.manifest.certificate.status is Status.PROVEN
        assert artifact.manifest.task == "text-classification"
        assert artifact.manifest.graph.axes == {"batch_size": "1..", "sequence_length": "1..80"}
        feeds = Tokens.open(artifact.folder).batch(TEXTS)
        assert {name: array.shape for name, array in feeds.items()} == dict.fromkeys(
            ["input_ids", "attention_mask", "token_type_ids"], (3, len(TEXTS[1]))
        )
        model = transformers.AutoModelForSequenceClassification.from_pretrained(source).eval()
        with torch.no_grad():
            want = model(**{name: torch.from_numpy(array) for name, array in feeds.items()}).logits
        np.testing.assert_allclose(artifact.run(feeds)["logits"], want.numpy(), **CLOSE)

    @pytest.mark.parametrize("precision", ["fp32", "int8"])
    def test_the_recorded_graph_keeps_every_parameter_its_own(
        self, source: Path, tmp_path: Path, precision: str
    ) -> None:
        """While it is recorded the model is new, and all its biases are zeros."""
        made = truecast.export(source, tmp_path / "out", precision=precision, exporter="torchscript")
        assert made.manifest.certificate.status is Status.PROVEN
        held = {name for weight in made.manifest.weights for name in weight.sources}
        assert {"bert.encoder.layer.0.attention.self.query.bias", "classifier.bias"} <= held

    def test_what_other_tools_need_lies_beside_the_graph(self, artifact: truecast.Artifact) -> None:
        names = {file.name for file in artifact.folder.iterdir()}
        assert {"config.json", "tokenizer.json", "tokenizer_config.json", "model.onnx", "truecast.json"} <= names
        config = json.loads((artifact.folder / "config.json").read_text())
        assert config["id2label"] == {str(index): label for index, label in LABELS.items()}

    def test_long_texts_are_cut_and_pairs_are_joined(self, artifact: truecast.Artifact) -> None:
        tokens = Tokens.open(artifact.folder)
        assert tokens.batch(["x" * 300])["input_ids"].shape == (1, 80)
        assert tokens.batch(["x" * 300], max_length=9)["input_ids"].shape == (1, 9)
        assert tokens.batch(["ab"], pairs=["cde"])["input_ids"].shape == (1, 5)
        padded = tokens.batch(TEXTS)
        assert padded["attention_mask"].sum(1).tolist() == [len(text) for text in TEXTS]

    def test_it_does_not_generate_and_a_decoder_does_not_run(
        self, artifact: truecast.Artifact, pristine_artifact: Path
    ) -> None:
        with pytest.raises(InputError, match="holds no decoder"):
            artifact.generate("hello")
        with pytest.raises(InputError, match=r"is a language model with a cache; use generate\(\)"):
            truecast.open(pristine_artifact).run({})

    def test_it_is_proven_again_and_may_have_moved(
        self, source: Path, artifact: truecast.Artifact, tmp_path: Path
    ) -> None:
        assert artifact.verify().status is Status.PROVEN
        moved = shutil.copytree(source, tmp_path / "moved")
        tensors = {name: np.array(array) for name, array in load_file(moved / "model.safetensors").items()}
        tensors["classifier.bias"][0] += 1
        save_file(tensors, moved / "model.safetensors", metadata={"format": "pt"})
        again = artifact.verify(moved)
        failed = {check.name for check in again.checks if not check.passed}
        assert again.status is Status.FAILED
        assert {"files of the source", "weights are the checkpoint's"} <= failed

    @pytest.mark.parametrize("precision", ["fp16", "bf16", "int4"])
    def test_it_is_proven_in_other_precisions(self, source: Path, precision: str, tmp_path: Path) -> None:
        made = truecast.export(source, tmp_path / "out", precision=precision)
        assert made.manifest.certificate.status is Status.PROVEN

    def test_plain_onnx_of_an_older_opset_is_proven(self, source: Path, tmp_path: Path) -> None:
        made = truecast.export(source, tmp_path / "out", target="portable", precision="fp32", opset=18)
        assert made.manifest.certificate.status is Status.PROVEN
        assert made.manifest.graph.opsets == {"": 18}

    def test_another_task_leaves_the_head_out(self, source: Path, tmp_path: Path) -> None:
        made = truecast.export(source, tmp_path / "out", task="feature-extraction", precision="fp32", verify=False)
        assert [tensor.name for tensor in made.manifest.graph.outputs] == ["last_hidden_state", "pooler_output"]
        assert set(made.manifest.ignored_tensors) == {"classifier.weight", "classifier.bias"}

    def test_a_head_that_is_not_there_is_refused(self, source: Path, tmp_path: Path) -> None:
        body = without(source, tmp_path / "body", "classifier.")
        assert "classifier.weight" in refusal(tmp_path, body, precision="fp32")

    @pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
    @pytest.mark.parametrize("gone", ["classifier.", "classifier.bias"])
    @pytest.mark.parametrize("changed", [{"architectures": ["BertModel"]}, {"output_hidden_states": True}], ids=str)
    def test_a_head_is_never_made_up(
        self, source: Path, tmp_path: Path, changed: dict[str, Any], gone: str, exporter: str
    ) -> None:
        body = without(source, tmp_path / "body", gone)
        config = json.loads((body / "config.json").read_text()) | changed
        (body / "config.json").write_text(json.dumps(config))
        options = {"task": "text-classification", "precision": "fp32", "exporter": exporter}
        assert "has no tensor 'classifier." in refusal(tmp_path, body, **options)


def without(source: Path, place: Path, prefix: str) -> Path:
    """A copy of a folder without the tensors of that prefix."""
    shutil.copytree(source, place)
    tensors = load_file(place / "model.safetensors")
    kept = {name: array for name, array in tensors.items() if not name.startswith(prefix)}
    assert len(kept) < len(tensors)
    save_file(kept, place / "model.safetensors", metadata={"format": "pt"})
    return place


class TestSentences:
    @pytest.fixture(scope="class")
    def embedder(self, folder: Path) -> truecast.Artifact:
        return truecast.export(sentences(folder / "sentences"), folder / "embedder", precision="fp32")

    def test_the_files_of_sentence_transformers_are_kept(self, folder: Path, embedder: truecast.Artifact) -> None:
        assert embedder.manifest.task == "sentence-similarity"
        for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"):
            assert (embedder.folder / name).read_bytes() == (folder / "sentences" / name).read_bytes()
            assert name in embedder.manifest.files

    def test_the_embedding_is_the_mean_of_what_counts_at_length_1(
        self, folder: Path, embedder: truecast.Artifact
    ) -> None:
        feeds = Tokens.open(embedder.folder).batch(TEXTS)
        model = transformers.AutoModel.from_pretrained(folder / "sentences").eval()
        with torch.no_grad():
            states = model(**{name: torch.from_numpy(array) for name, array in feeds.items()}).last_hidden_state
        got = embedder.run(feeds)
        assert list(got) == ["last_hidden_state", "sentence_embedding"]
        mean = np.stack([row[: len(text)].mean(0) for row, text in zip(states.numpy(), TEXTS, strict=True)])
        want = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        np.testing.assert_allclose(got["sentence_embedding"], want, **CLOSE)
        np.testing.assert_allclose(got["last_hidden_state"], states.numpy(), rtol=1e-4, atol=1e-4)

    def test_a_pooler_that_nobody_trained_is_left_out_with_a_notice(self, source: Path, tmp_path: Path) -> None:
        body = without(source, tmp_path / "body", "bert.pooler.")
        made = truecast.export(body, tmp_path / "out", task="feature-extraction", precision="fp32")
        assert [tensor.name for tensor in made.manifest.graph.outputs] == ["last_hidden_state"]
        notice = "The output pooler_output is left out: the checkpoint has no pooler.dense."
        assert any(text.startswith(notice) for text in made.manifest.notices)
        assert made.manifest.certificate.status is Status.PROVEN


class TestPublishing:
    def test_what_is_at_out_stays_unless_forced(self, tmp_path: Path) -> None:
        options = {"example_inputs": torch.zeros(2, 8), "verify": False}
        out = truecast.export(nn.Linear(8, 4), tmp_path / "out", **options).folder
        before = content(out)
        with pytest.raises(InputError, match="out"):
            truecast.export(nn.Linear(8, 3), out, **options)
        assert content(out) == before
        truecast.export(nn.Linear(8, 3), out, force=True, **options)
        assert truecast.open(out).manifest.graph.outputs[0].shape == ["batch_size", 3]

    def test_a_failed_proof_is_kept_apart(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        check = Check(tier="parity", name="planted", passed=False, measured=2.0, limit=1.0, detail="here")
        certificate = Certificate(status=Status.FAILED, checks=[check])
        monkeypatch.setattr("truecast.proof.modules.prove_module", lambda *args, **options: certificate)
        with pytest.raises(ProofError, match=r"parity/planted measured 2\.0"):
            truecast.export(nn.Linear(8, 4), tmp_path / "out", example_inputs=torch.zeros(2, 8))
        assert [path.name for path in tmp_path.iterdir()] == ["out.rejected"]

    def test_without_a_proof_the_certificate_says_so(self, tmp_path: Path) -> None:
        made = truecast.export(nn.Linear(8, 4), tmp_path / "out", example_inputs=torch.zeros(2, 8), verify=False)
        assert made.manifest.certificate.status is Status.UNPROVEN


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no examples": ({"example_inputs": None}, r"A module needs example_inputs: one tensor for every input"),
    "a wrong example": (
        {"example_inputs": torch.zeros(2, 9)},
        r"Linear does not take the inputs input \[2, 9\]: its code cannot go on \(.*\); give others\.",
    ),
    "an unknown input": ({"dynamic": {"y": {0: "b"}}}, r"There is no input 'y' to free an axis of; there are input\."),
    "an unknown axis": ({"dynamic": {"input": {2: "b"}}}, r"input has the axes 0 to 1; \[2\] cannot be freed\."),
    "an axis that the module fixes": ({"dynamic": {"input": {1: "width"}}}, r"fixes axis 1 of input \(width\) at 8"),
    "a target for decoders": ({"target": "genai"}, r"--target genai is for decoders; choose one of onnxruntime"),
    "an unknown precision": ({"precision": "int5"}, r"There is no precision 'int5'; did you mean 'int"),
    "an unknown exporter": ({"exporter": "jit"}, r"There is no exporter 'jit'; choose one of dynamo, torchscript\."),
    "an unknown level": ({"optimization": "more"}, r"There is no level of optimization 'more'; choose one of"),
    "an opset too old": ({"opset": 17}, r"opset 17; choose one from 18 to 2\d\."),
    "a quantized cache": ({"kv_cache": "int8"}, r"--kv-cache is for decoders"),
    "a method for decoders": ({"method": "gptq", "precision": "int4"}, r"--method gptq is for decoders; choose one of"),
    "a factory that is none": ({"module": "nowhere"}, r"--module 'nowhere' names no function"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_sentence_and_nothing_is_written(what: str, tmp_path: Path) -> None:
    options, pattern = REFUSED[what]
    given: Any = tmp_path if "module" in options else nn.Linear(8, 4)
    message = refusal(tmp_path, given, **{"example_inputs": torch.zeros(2, 8), **options})
    assert re.search(pattern, message), message
    assert len(message.splitlines()) == 1


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    module = nn.Linear(8, 4)
    with torch.no_grad():
        module.weight[2, 3] = torch.nan
    assert "'weight' in memory holds NaN or infinity (row 2)" in refusal(
        tmp_path, module, example_inputs=torch.zeros(2, 8)
    )


def test_a_failure_inside_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting_modules, "write", broken)
    message = refusal(tmp_path, nn.Linear(8, 4), example_inputs=torch.zeros(2, 8))
    assert message.endswith("could not be written: No space left on device.")
