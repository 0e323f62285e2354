"""What the manifest says of an artifact's kind may only agree with graph and source; it never widens a limit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import truecast
from tests.conformance.cases import BY_NAME
from tests.proof.conftest import Artifact
from tests.proof.planting import change_data, change_graph, change_manifest, failed, manifest_of, reprove
from tests.test_artifact import MANIFEST
from tests.tiny import tiny_checkpoint
from truecast.artifact import Status
from truecast.proof.claims import NAME, claims_check, session_faults
from truecast.proof.held import load_graph

VALUES = "weights are the checkpoint's"
DOWN = "model.layers.1.mlp.down_proj.weight"


def flip(array: np.ndarray) -> None:
    array[37] ^= 0x77


def scaled(factor: float):  # type: ignore[no-untyped-def]
    def change(array: np.ndarray) -> None:
        scales = array.view(np.float32)
        scales *= np.float32(factor)

    return change


def settings(folder: Path, **changes: object) -> None:
    change_manifest(folder, settings=manifest_of(folder).settings | changes)


@pytest.mark.parametrize(("part", "change"), [("codes", flip), ("scales", scaled(1.05)), ("scales", scaled(1.01))])
def test_a_method_that_the_manifest_names_excuses_no_weight(part: str, change, spoilable: Artifact) -> None:  # type: ignore[no-untyped-def]
    folder = spoilable("llama", "int4")
    change_data(folder, f"{DOWN}.{part}", change)
    settings(folder, method="gptq")
    found = failed(reprove(folder))
    assert {NAME, VALUES} <= set(found)
    assert "gptq" in found[NAME].detail and DOWN in found[VALUES].detail


@pytest.mark.parametrize(("precision", "says"), [("fp16", "computes in float32"), ("zzz", "no precision zzz")])
def test_a_precision_that_the_graph_has_not_is_found_and_widens_nothing(
    precision: str, says: str, spoilable: Artifact
) -> None:
    folder = spoilable("llama", "fp32")
    change_manifest(folder, precision=precision)
    certificate = reprove(folder)
    assert says in failed(certificate)[NAME].detail
    tight = next(check for check in certificate.checks if check.name.startswith("as shipped against"))
    assert tight.limit is not None and tight.limit <= 1e-4


def test_other_fields_of_the_manifest_must_agree(spoilable: Artifact) -> None:
    folder = spoilable("llama", "int4")
    graph = manifest_of(folder).graph
    assert graph.cache is not None
    cache = graph.cache.model_copy(update={"bits": 8, "layers": 7})
    changes = {"padding": "right", "cache": cache}
    change_manifest(folder, dialect="standard", provider="abacus", graph=graph.model_copy(update=changes))
    detail = failed(reprove(folder))[NAME].detail
    for said in (
        *("dialect is standard", "padding is right", "no bits to a code in the graph", "no provider abacus"),
        "2 layers of float32 in the graph, 7 layers",
    ):
        assert said in detail


@pytest.mark.parametrize(
    ("changes", "says"), [({"layers": 7}, "7 layers of float32"), ({"dtype": "float16"}, "layers of float16 in")]
)
def test_a_cache_of_other_layers_or_floats_is_found(changes: dict[str, object], says: str, made: Artifact) -> None:
    folder = made("llama", "int4")
    manifest = manifest_of(folder)
    assert manifest.graph.cache is not None
    cache = manifest.graph.cache.model_copy(update=changes)
    claimed = manifest.model_copy(update={"graph": manifest.graph.model_copy(update={"cache": cache})})
    model = load_graph(folder, "model.onnx")
    assert claims_check(model, manifest, {}, decoder=True).passed
    assert says in claims_check(model, claimed, {}, decoder=True).detail


def test_a_session_that_cannot_be_is_found() -> None:
    graph = MANIFEST.graph.model_copy(update={"optimization": "most"})
    claimed = MANIFEST.model_copy(update={"graph": graph, "precision": "bf16", "provider": "cpu"})
    assert list(session_faults(claimed)) == [
        "the provider is cpu, which has no kernels for bfloat16",
        "there is no level of optimization most",
    ]


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
def test_a_tied_table_whose_rows_are_no_whole_blocks_is_quantized_all_the_same(target: str, tmp_path: Path) -> None:
    case = BY_NAME["llama_head_dim_24"]
    tied = type(case)(case.name, case.config_class, {**case.settings, "tie_word_embeddings": True})
    out = truecast.export(
        tiny_checkpoint(tied, tmp_path / "source"), tmp_path / "out", precision="int4", target=target, verify=False
    )
    certificate = reprove(tmp_path / "out")
    assert certificate.status is Status.PROVEN, failed(certificate)
    packings = {info.packing for info in manifest_of(tmp_path / "out").weights if "embed" in info.initializers[0]}
    assert all(packing.startswith("int4") for packing in packings) and packings and out


def test_a_float_weight_where_codes_were_asked_for_fails(spoilable: Artifact) -> None:
    folder = spoilable("llama", "fp32")
    change_manifest(folder, precision="int4", settings={"method": "rtn", "block_size": 32})
    found = failed(reprove(folder))["weights quantized as asked"]
    assert found.measured == 0.0 and "embed_tokens" in found.detail


def test_a_graph_that_breaks_the_comparison_itself_fails_without_a_traceback(
    spoilable: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = spoilable("llama", "fp32")

    def unforeseen(*args: object, **options: object) -> None:
        raise KeyError

    monkeypatch.setattr("truecast.proof.running.compare_all", unforeseen)
    certificate = reprove(folder)
    assert certificate.status is Status.FAILED
    assert failed(certificate)["the graph can be compared"].detail == "KeyError: KeyError"


def test_outputs_that_are_missing_fail_without_a_traceback(spoilable: Artifact) -> None:
    folder = spoilable("llama", "fp32")
    change_graph(folder, lambda model: model.graph.outputs.pop())
    assert reprove(folder).status is Status.FAILED
