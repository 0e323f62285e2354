"""The inputs of models of sound: what the author's own feature extractor makes of a recording.

Data flow: preprocessor_config.json → transformers' feature extractor, run on recordings of three lengths → names,
dtypes and shapes; the axis that grows with the recording is free. Without that file, sizes are those of config.json.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import feature_extraction_auto

from truecast.checkpoint.folder import read_side_file
from truecast.checkpoint.model import Checkpoint
from truecast.checkpoint.tasks import FEATURES
from truecast.errors import InputError
from truecast.trace.author import BATCH, AuthorModule, Axis, InputSpec, try_call

SOUNDS = ("input_values", "input_features")
"""What the first input of a model of sound is called."""
EXTRACTOR_FILES = ("preprocessor_config.json", "processor_config.json")
"""Where transformers keeps a feature extractor: alone, or as a part of a processor."""
MASK = "attention_mask"
EXAMPLE_SAMPLES, LEAST_SAMPLES, MORE_SAMPLES = 16_003, 1600, 24_007
"""Samples of a recording: an unusual number, a tenth of a second at 16 kHz (convolutions make no frame of much less),
and some more."""
SAMPLES, FRAMES = "num_samples", "num_frames"
Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]


def sound_inputs(
    model: PreTrainedModel, config: PreTrainedConfig, checkpoint: Checkpoint, dtype: torch.dtype, rows: int
) -> tuple[InputSpec, ...]:
    """The inputs in the first layout that the model takes; raises InputError, with the model's words, for none."""
    refused: InputError | None = None
    for specs in _layouts(model, config, checkpoint, dtype, rows):
        try:
            try_call(AuthorModule(model, specs, FEATURES), [spec.example for spec in specs])
        except InputError as error:
            refused = refused or error
        else:
            return specs
    if refused is None or not _settings(checkpoint):
        raise InputError(
            f"{checkpoint.path} has no {EXTRACTOR_FILES[0]}, which says what {type(model).__name__} takes of a "
            "recording; add the one that the model came with."
        ) from refused
    raise refused


def _layouts(
    model: PreTrainedModel, config: PreTrainedConfig, checkpoint: Checkpoint, dtype: torch.dtype, rows: int
) -> Iterator[tuple[InputSpec, ...]]:
    """What the extractor says, then what config.json does: samples, or [frames, bins] or [bins, frames] of a mel."""
    settings = _settings(checkpoint)
    if settings:
        yield from _extracted(model, config, settings, dtype, rows)
    main, batch = model.main_input_name, {0: Axis(BATCH)}
    bins = getattr(config, "num_mel_bins", None) or getattr(config, "feature_projection_input_dim", None)
    frames = getattr(config, "max_length", None) or getattr(config, "max_source_positions", None)
    if not bins:
        axes = {**batch, 1: Axis(SAMPLES, LEAST_SAMPLES)}
        yield (InputSpec(main, torch.zeros(rows, EXAMPLE_SAMPLES, dtype=dtype), axes),)
        return
    for shape in ((frames, bins), (bins, 2 * frames), (bins, frames)) if frames else ():
        yield (InputSpec(main, torch.zeros(rows, *map(int, shape), dtype=dtype), batch),)
    yield (InputSpec(main, torch.zeros(rows, 101, int(bins), dtype=dtype), {**batch, 1: Axis(FRAMES, 16)}),)


def _settings(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The settings of the feature extractor; none where the folder has no such file."""
    files = checkpoint.side_files
    alone, nested = (read_side_file(files, name) for name in EXTRACTOR_FILES)
    return {**nested.get("feature_extractor", {}), **alone}


def _extracted(
    model: PreTrainedModel, config: PreTrainedConfig, settings: Mapping[str, Any], dtype: torch.dtype, rows: int
) -> Iterator[tuple[InputSpec, ...]]:
    """The inputs as the extractor makes them; nothing where it cannot be run here."""
    known: Mapping[str, str] = vars(feature_extraction_auto)["FEATURE_EXTRACTOR_MAPPING_NAMES"]
    kind = settings.get("feature_extractor_type") or known.get(config.model_type, "")
    taken = inspect.signature(model.forward).parameters
    try:
        with unset_fake_temporarily():
            extractor = getattr(transformers, str(kind)).from_dict(dict(settings))
            least, some, more = (_shapes(extractor, n) for n in (LEAST_SAMPLES, EXAMPLE_SAMPLES, MORE_SAMPLES))
    except Exception:  # an extractor of other code, or of a library that is not here
        return
    if model.main_input_name in some:
        names = [name for name in some if name in taken]
        yield tuple(_spec(name, least, some, more, dtype, rows) for name in names)


def _shapes(extractor: Any, samples: int) -> Shapes:
    sound = np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    made = extractor(sound, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    return {name: (tuple(value.shape), value.dtype) for name, value in made.items() if isinstance(value, Tensor)}


def _spec(name: str, least: Shapes, some: Shapes, more: Shapes, dtype: torch.dtype, rows: int) -> InputSpec:
    """An input of `rows` recordings: what grows with the recording is free from the least one on."""
    (shape, kind), axes = some[name], {0: Axis(BATCH)}
    for index, (size, longer) in enumerate(zip(shape[1:], more[name][0][1:], strict=True), start=1):
        if size != longer:
            axes[index] = Axis(SAMPLES if size == EXAMPLE_SAMPLES else FRAMES, max(1, least[name][0][index]))
    value = torch.ones if name.endswith("mask") else torch.zeros
    example = value(rows, *shape[1:], dtype=dtype if kind.is_floating_point else kind)
    return InputSpec(name, example, axes, None if kind.is_floating_point or kind is torch.bool else 2)
