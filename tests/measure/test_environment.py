"""What a certificate says of the machine."""

from __future__ import annotations

from truecast.measure.environment import environment, processor

X86 = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx avx2 fma avx512_vnni sse\n\nprocessor\t: 1\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n"


def test_features_that_choose_kernels_are_named() -> None:
    assert processor(X86) == {"processor": "Some CPU @ 2 GHz", "features": "avx avx2 fma avx512_vnni"}
    assert processor(ARM)["features"] == "asimd asimddp i8mm"
    assert processor("")["features"] == ""


def test_versions_are_there_and_nothing_that_changes_from_run_to_run() -> None:
    found = environment()
    assert {"onnxruntime", "torch", "transformers", "threads", "u8s8 products"} <= set(found)
    assert found == environment()
    assert list(found) == sorted(found)
