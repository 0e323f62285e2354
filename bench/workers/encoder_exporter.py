"""Peers' exports of an encoder: `encoder_exporter.py KIND SOURCE OUT` writes OUT/model.onnx.

KIND: dynamo, torchscript, transformers, optimum, quantize_dynamic (of what dynamo wrote beside OUT).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

NAMES = ("input_ids", "attention_mask", "token_type_ids")


def load(source: Path) -> tuple[Any, dict[str, Any]]:
    """The author's model without a head, and example inputs."""
    import inspect

    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(source, dtype=torch.float32).eval()
    ids = torch.randint(5, 1000, (2, 16))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    taken = inspect.signature(model.forward).parameters
    return model, {name: tensor for name, tensor in given.items() if name in taken}


def dynamo(source: Path, out: Path) -> None:
    """torch.onnx.export with its defaults, axes free."""
    import torch

    model, inputs = load(source)
    batch, length = torch.export.Dim("batch_size"), torch.export.Dim("sequence_length")
    torch.onnx.export(
        model,
        (),
        out / "model.onnx",
        kwargs=inputs,
        dynamo=True,
        dynamic_shapes={name: {0: batch, 1: length} for name in inputs},
    )


def torchscript(source: Path, out: Path) -> None:
    """The older exporter."""
    import torch

    model, inputs = load(source)

    class Positional(torch.nn.Module):
        """The model called by position, as this exporter does, and giving one tensor."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            """One tensor for each input, in order."""
            return self.model(**dict(zip(inputs, tensors, strict=True))).last_hidden_state

    torch.onnx.export(
        Positional().eval(),
        tuple(inputs.values()),
        out / "model.onnx",
        input_names=list(inputs),
        output_names=["last_hidden_state"],
        dynamic_axes={name: {0: "batch_size", 1: "sequence_length"} for name in (*inputs, "last_hidden_state")},
        dynamo=False,
        opset_version=17,
    )


def transformers(source: Path, out: Path) -> None:
    """transformers' own exporter with its fusions for the processor."""
    from transformers.exporters import OnnxConfig, OnnxExporter

    model, inputs = load(source)
    exported = OnnxExporter().export(model, inputs, OnnxConfig(dynamic=True, ort_fusions="cpu"))
    exported.save_pretrained(out)


def optimum(source: Path, out: Path) -> None:
    """optimum-onnx's export."""
    from optimum.exporters.onnx import main_export

    main_export(str(source), out, task="feature-extraction", do_validation=False)


def quantize_dynamic(source: Path, out: Path) -> None:
    """ONNX Runtime's dynamic quantization with its defaults, of the dynamo graph."""
    from onnxruntime.quantization import quantize_dynamic as quantize

    quantize(out.parent / "dynamo" / "model.onnx", out / "model.onnx")


if __name__ == "__main__":
    kind, place = sys.argv[1], Path(sys.argv[3])
    place.mkdir(parents=True, exist_ok=True)
    {f.__name__: f for f in (dynamo, torchscript, transformers, optimum, quantize_dynamic)}[kind](
        Path(sys.argv[2]), place
    )
