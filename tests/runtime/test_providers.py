"""Sessions are what was asked for, and names that mean nothing are refused."""

import mmap
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from truecast.errors import InputError, TruecastError
from truecast.runtime import providers
from truecast.runtime.providers import ASSIGNMENT_KEY, KNOWN_KEYS, assigned_nodes, find_provider, open_session

K, N, BLOCK = 64, 16, 32


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """One 4-bit product whose activations are int8 by default (accuracy level 4)."""
    random = np.random.default_rng(0)
    weights = {
        "codes": random.integers(0, 256, (N, K // BLOCK, BLOCK // 2), dtype=np.uint8),
        "scales": random.random((N, K // BLOCK), dtype=np.float32),
    }
    shape = {"K": K, "N": N, "bits": 4, "block_size": BLOCK}
    node = helper.make_node("MatMulNBits", ["x", *weights], ["y"], domain="com.microsoft", accuracy_level=4, **shape)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "g", [value("x", TensorProto.FLOAT, ["rows", K])], [value("y", TensorProto.FLOAT, ["rows", N])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def product(path: Path, x: np.ndarray) -> np.ndarray:
    """The same product in float64, from the file's codes: low nibble first, zero point 8."""
    codes, scales = (numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer)
    nibbles = np.stack([codes & 15, codes >> 4], axis=-1).reshape(N, K // BLOCK, BLOCK)
    return x @ ((nibbles.astype(np.float64) - 8) * scales[:, :, None]).reshape(N, K).T


def test_exact_switches_int8_activations_off(model: Path) -> None:
    x = np.random.default_rng(1).standard_normal((3, K)).astype(np.float32)
    expected = product(model, x)
    errors = [
        np.abs(open_session(model, threads=1, exact=exact).run(None, {"x": x})[0] - expected).max()
        for exact in (True, False)
    ]
    assert errors[0] < 1e-5 * np.abs(expected).max() < 1e-3 * np.abs(expected).max() < errors[1]


def test_threads_are_what_was_asked_for(model: Path) -> None:
    assert open_session(model, threads=2).get_session_options().intra_op_num_threads == 2


def test_default_threads_are_explicit(model: Path) -> None:
    assert open_session(model).get_session_options().intra_op_num_threads == providers.default_threads()


@pytest.mark.parametrize("threads", [0, -3])
def test_threads_below_one_are_refused(model: Path, threads: int) -> None:
    with pytest.raises(InputError, match="number of threads"):
        open_session(model, threads=threads)


def test_a_misspelt_provider_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'cuda'"):
        find_provider("cudda")


def test_an_unknown_provider_lists_the_known() -> None:
    with pytest.raises(InputError, match="choose one of cpu, cuda"):
        find_provider("abacus")


def test_a_provider_that_is_not_installed_names_its_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(InputError, match=r"which has cpu; install the wheel onnxruntime-gpu"):
        find_provider("CUDA")


def test_a_misspelt_session_key_is_refused(model: Path) -> None:
    with pytest.raises(InputError, match=r"did you mean 'session.disable_prepacking'"):
        open_session(model, entries={"session.disable_prepaking": "1"})


def test_every_known_key_is_in_the_library() -> None:
    with Path(ort_state.__file__).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library:
        assert [key for key in sorted(KNOWN_KEYS) if library.find(key.encode()) < 0] == []


def test_a_known_key_reaches_the_session(model: Path) -> None:
    session = open_session(model, entries={ASSIGNMENT_KEY: "1"})
    assert assigned_nodes(session) == {"CPUExecutionProvider": 1}


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.onnx is missing"):
        open_session(tmp_path / "model.onnx")


def test_a_damaged_model_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match="cannot load") as caught:
        open_session(tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)


class FallenBack:
    """A session that runs elsewhere than asked, as ONNX Runtime makes when it falls back."""

    def __init__(self, name: str, threads: int) -> None:
        self.name, self.intra_op_num_threads = name, threads

    def get_providers(self) -> list[str]:
        return [self.name]

    def get_session_options(self) -> "FallenBack":
        return self


@pytest.mark.parametrize(
    ("session", "message"),
    [
        (FallenBack("AzureExecutionProvider", 1), "although CPUExecutionProvider was asked for"),
        (FallenBack("CPUExecutionProvider", 7), "took 7 threads although 1"),
    ],
)
def test_a_session_that_is_not_what_was_asked_for_is_an_error(
    model: Path, monkeypatch: pytest.MonkeyPatch, session: FallenBack, message: str
) -> None:
    monkeypatch.setattr(ort, "InferenceSession", lambda *_, **__: session)
    with pytest.raises(TruecastError, match=message):
        open_session(model, threads=1)


def test_no_memory_is_kept_for_later(model: Path) -> None:
    options = open_session(model).get_session_options()
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern


def test_the_optimized_graph_and_a_profile_can_be_had(model: Path, tmp_path: Path) -> None:
    saved = tmp_path / "optimized.onnx"
    session = open_session(model, threads=1, optimized_model=saved, profile=tmp_path / "profile")
    session.run(None, {"x": np.ones((1, K), np.float32)})
    assert saved.is_file()
    assert Path(session.end_profiling()).parent == tmp_path


def test_optimize_false_runs_the_graph_as_written(model: Path) -> None:
    session = open_session(model, level="none")
    level = session.get_session_options().graph_optimization_level
    assert level == ort.GraphOptimizationLevel.ORT_DISABLE_ALL
