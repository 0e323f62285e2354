"""The lines of an export's summary that tell the noise in its weights."""

from __future__ import annotations

from truecast.artifact import Certificate, Status
from truecast.cli.show import noise_lines


def test_a_layer_is_a_line_and_other_weights_have_their_own() -> None:
    ratios = {
        "model.embed_tokens.weight": 21.04,
        "model.layers.0.self_attn.q_proj.weight": 19.96,
        "model.layers.0.mlp.up_proj.weight": None,
        "model.layers.11.mlp.up_proj.weight": 20.0,
        "lm_head.weight": 45.5,
    }
    assert noise_lines(Certificate(status=Status.PROVEN, signal_to_noise=ratios)) == [
        "model.embed_tokens: 21.0 dB",
        "model.layers.0: self_attn.q_proj 20.0, mlp.up_proj exact dB",
        "model.layers.11: mlp.up_proj 20.0 dB",
        "lm_head: 45.5 dB",
    ]


def test_without_measurements_nothing_is_said() -> None:
    assert noise_lines(Certificate(status=Status.UNPROVEN)) == []
