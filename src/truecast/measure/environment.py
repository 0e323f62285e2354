"""Where numbers come from: versions of the libraries and features of the processor, without which they mean little."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from truecast.runtime.processors import default_threads

PACKAGES = ("truecast", "onnxruntime", "torch", "transformers", "onnx", "onnx-ir", "numpy")
FEATURES = ("avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8")
"""Instruction sets that decide which of ONNX Runtime's kernels run (names as Linux gives them)."""
ARM_FEATURES = ("asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve")
CPUINFO = Path("/proc/cpuinfo")


def environment() -> dict[str, str]:
    """Versions and processor features, sorted by name; holds no time and no host name."""
    found = {name: _version(name) for name in PACKAGES}
    found["python"] = platform.python_version()
    found["system"] = f"{platform.system()} {platform.machine()}"
    found["threads"] = str(default_threads())
    found["cores"] = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    found |= processor(CPUINFO.read_text(encoding="utf-8") if CPUINFO.is_file() else "")
    found["u8s8 products"] = "exact" if exact_u8s8() else "saturating"
    return dict(sorted(found.items()))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def processor(cpuinfo: str) -> Mapping[str, str]:
    """Name and features of the first processor in the text of /proc/cpuinfo."""
    first = cpuinfo.split("\n\n")[0]
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    features = [name for name in (*FEATURES, *ARM_FEATURES) if name in flags]
    return {"processor": fields.get("model name", platform.processor() or "unknown"), "features": " ".join(features)}


PROBE_DEPTH = 64


def exact_u8s8() -> bool:
    """Whether products of unsigned and signed bytes are exact here: the probe's largest sums saturate 16 bits.

    Where they are not (AVX2 without VNNI), graphs with int8 products give other numbers than on processors with it.
    """
    left, right = np.full((1, PROBE_DEPTH), 255, np.uint8), np.full((PROBE_DEPTH, 1), 127, np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, left.shape)],
        [helper.make_tensor_value_info("y", TensorProto.INT32, (1, 1))],
        [numpy_helper.from_array(right, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return bool(session.run(None, {"a": left})[0][0, 0] == 255 * 127 * PROBE_DEPTH)
