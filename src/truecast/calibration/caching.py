"""Giving a finished graph a quantized cache: scales, the graph with them, and what the manifest says of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import onnx_ir as ir

from truecast.artifact import CacheInfo, GraphInfo, Manifest, TensorInfo
from truecast.calibration.cache import calibrated_scales, graph_keys_and_values, token_rows
from truecast.calibration.prose import PROSE
from truecast.calibration.stored_scales import stored_scales
from truecast.checkpoint.model import Checkpoint
from truecast.runtime.decoder import Decoder
from truecast.runtime.providers import open_session
from truecast.states import StateTensor
from truecast.weights.cache import DTYPES, quantize_cache
from truecast.weights.writer import append_weights

Progress = Callable[[str, int, int], None]

SETTING = "cache_scales"
"""What the manifest's settings call the origin of the scales."""
OWN, FROM_PROSE, FROM_TEXT = "the checkpoint's own", "from truecast's own text", "from the calibration text"


def with_quantized_cache(
    folder: Path,
    model: ir.Model,
    data: str,
    manifest: Manifest,
    checkpoint: Checkpoint,
    bits: int,
    texts: Sequence[str],
    report: Progress,
) -> Manifest:
    """Makes the cache of the graph in `folder` one of codes, and says so in the manifest.

    Args:
        folder: holds the graph with a float cache, its weights, and the tokenizer.
        model: that graph; it is changed, and saved in place of the old one.
        data: name of the file that the scales are written to.
        manifest: of the float cache.
        checkpoint: where scales of its own may be.
        bits: of a code, 8 or 4.
        texts: what the scales are calibrated on where there are none; nothing takes a text that truecast brings.
        report: called with stage, done and total.

    Raises:
        InputError: part of the cache is kept by other operators, or calibration needs a tokenizer and there is none.
    """
    info = manifest.graph
    scales, notice = stored_scales(checkpoint, model, bits)
    origin = OWN
    if not scales:
        origin = FROM_TEXT if texts else FROM_PROSE
        decoder = Decoder(open_session(folder / info.file, exact=True, entries=info.session_entries), info)
        rows = token_rows(folder, texts or PROSE, info.vocab_size, info.context_length)
        run, progress = partial(graph_keys_and_values, decoder), partial(report, "calibrate cache")
        scales = calibrated_scales(run, model, rows, bits, progress)
    weights = append_weights(model, folder / data, quantize_cache(model, scales, bits))
    ir.save(model, folder / info.file)
    used = {name for weight in weights for name in weight.sources}
    return manifest.model_copy(
        update={
            "graph": _coded(info, bits),
            "weights": [*manifest.weights, *weights],
            "settings": manifest.settings | {SETTING: origin},
            "ignored_tensors": {k: v for k, v in manifest.ignored_tensors.items() if k not in used},
            "notices": [*manifest.notices, *([notice] if notice else [])],
        }
    )


def _coded(info: GraphInfo, bits: int) -> GraphInfo:
    assert info.cache is not None
    dtype = str(DTYPES[bits].numpy())
    cache = info.cache.model_copy(update={"dtype": dtype, "bits": bits, "stands_for": info.cache.dtype})
    inputs, outputs = ([_coded_tensor(t, cache) for t in tensors] for tensors in (info.inputs, info.outputs))
    return info.model_copy(update={"cache": cache, "inputs": inputs, "outputs": outputs})


def _coded_tensor(tensor: TensorInfo, cache: CacheInfo) -> TensorInfo:
    if StateTensor.named(tensor.name) is None:
        return tensor
    *others, width = tensor.shape
    assert isinstance(width, int)
    return tensor.model_copy(update={"dtype": cache.dtype, "shape": [*others, width // cache.values_per_element]})
