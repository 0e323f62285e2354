"""What a file says in its own ways and ONNX Runtime takes as the usual one."""

from __future__ import annotations

from pathlib import Path

from tests.hazards.building import WIDTH, layer, model, node, save, tensor, weight
from truecast.diagnosis import diagnose


def test_a_size_of_minus_one_is_a_free_axis(tmp_path: Path) -> None:
    """As Paddle's exporter writes it, in inputs, outputs and between."""
    ends = [tensor("x", [-1, WIDTH])], [tensor("y", [-1, WIDTH])]
    made = model([layer("x", "m"), node("Relu", ["m"], ["y"])], *ends, [weight("w", WIDTH, WIDTH)])
    made.graph.value_info.append(tensor("m", [-1, WIDTH]))
    found = diagnose(save(made, tmp_path), run=True, seconds=None)
    assert [f.code for f in found.findings if f.code != "TC309"] == []
    assert "x [3, 64]" in str(found.facts["ran"])
