"""Tensors that may divide an activation, as AWQ writes them where no layer before a product could take its factors."""

from __future__ import annotations

from truecast.checkpoint.model import Checkpoint, StoredTensor

SCALES = "scales"


def activation_scales(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """The tensors that may divide an activation, by name: those of weights are no longer tensors of their own."""
    return {name: tensor for name, tensor in checkpoint.tensors.items() if name.endswith(f".{SCALES}")}
