"""A Hugging Face folder: config.json, the tensors, and the files that go along.

Data flow: folder → config.json → safetensors headers → quantized modules resolved → `Checkpoint`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from truecast.checkpoint.adapters import ADAPTER_CONFIG, read_settings
from truecast.checkpoint.model import Checkpoint
from truecast.checkpoint.pickles import PICKLE_SUFFIXES, refuse_pickle
from truecast.checkpoint.safetensors_format import (
    INDEX_NAME,
    SINGLE_NAME,
    SUFFIX,
    read_folder_tensors,
    read_metadata,
    weights_file,
)
from truecast.checkpoint.schemes import resolve
from truecast.checkpoint.tasks import MODULES_FILE
from truecast.checkpoint.token_ids import without_stray_padding
from truecast.checkpoint.wrappers import unwrapped
from truecast.errors import InputError

CONFIG_NAME, GENERATION_FILE = "config.json", "generation_config.json"
WEIGHTS_KEY = "transformers_weights"
"""Where config.json names the file that holds the weights."""
FLOAT_KEY = "__float__"
"""How transformers writes what JSON has no number for: {"__float__": "Infinity"} (configuration_utils.py)."""
FLOATS: Mapping[str, float] = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
SIDE_FILE_NAMES = (
    CONFIG_NAME,
    GENERATION_FILE,
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    MODULES_FILE,
    "config_sentence_transformers.json",
)


def open_folder(folder: Path) -> Checkpoint:
    """Open the Hugging Face checkpoint in `folder`.

    Raises:
        InputError: config.json or the tensors are missing, unreadable, corrupt, or stored as pickles.
    """
    if not any(folder.iterdir()):
        raise InputError(f"{folder} is empty; give a folder with config.json and {SINGLE_NAME}, or a GGUF file.")
    if (folder / ADAPTER_CONFIG).is_file() and weights_file(folder) is None and not (folder / CONFIG_NAME).is_file():
        raise _adapter_alone(folder)
    config, strays = without_stray_padding(read_config(folder / CONFIG_NAME))
    named = config.get(WEIGHTS_KEY)
    tensors = read_folder_tensors(folder, named)
    if tensors is None:
        raise _no_tensors(folder)
    tensors, unwrapping = unwrapped(tensors)
    resolved = resolve(folder, config, tensors, read_metadata(folder, named))
    return Checkpoint(
        folder,
        "safetensors",
        config,
        resolved.tensors,
        side_files(folder),
        quantization=resolved.quantization,
        ignored=resolved.ignored,
        notices=(*unwrapping, *resolved.notices, *strays),
        cache_scales=resolved.cache_scales,
    )


def read_config(path: Path) -> Mapping[str, Any]:
    """The content of the config.json at `path`.

    Raises:
        InputError: there is none, or it is not a JSON object with a `model_type`.
    """
    if not path.is_file():
        raise InputError(f"{path.parent} has no {CONFIG_NAME}; give the folder that save_pretrained() wrote.")
    try:
        config = json.loads(path.read_bytes(), object_hook=_float)
        json.dumps(config, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON ({error}); restore it from the model's source.") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InputError(f"{path} names no model_type; restore it from the model's source.")
    if not isinstance(config.get(WEIGHTS_KEY), str | None):
        raise InputError(f"{path} has a {WEIGHTS_KEY} that is no name of a file; restore it from the model's source.")
    return config


def written_config(config: Mapping[str, Any]) -> bytes:
    """A config.json with this content, as transformers writes it."""
    return (json.dumps(_plain(config), indent=2, allow_nan=False) + "\n").encode()


def _float(values: dict[str, Any]) -> Any:
    """The number that an object of JSON stands for, or the object."""
    tag = values.get(FLOAT_KEY)
    return FLOATS[tag] if len(values) == 1 and isinstance(tag, str) and tag in FLOATS else values


def _plain(value: Any) -> Any:
    """The inverse of `_float`, all the way down."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {FLOAT_KEY: "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    return value


def _no_tensors(folder: Path) -> InputError:
    pickle = next((file for file in sorted(folder.iterdir()) if file.suffix in PICKLE_SUFFIXES), None)
    if pickle is not None:
        return refuse_pickle(folder, pickle.name)
    if (folder / ADAPTER_CONFIG).is_file():
        return _adapter_alone(folder)
    others = sorted(file.name for file in folder.glob(f"*{SUFFIX}"))
    if others:
        return InputError(
            f"{folder} has neither {SINGLE_NAME} nor {INDEX_NAME}, and config.json does not say that its weights are "
            f'in {others[0]}; if they are, add "{WEIGHTS_KEY}": "{others[0]}" to it.'
        )
    return InputError(f"{folder} has neither {SINGLE_NAME} nor {INDEX_NAME}; download the model's tensors into it.")


def _adapter_alone(folder: Path) -> InputError:
    base = read_settings(folder).get("base_model_name_or_path")
    named = f" ({base})" if base else ""
    return InputError(
        f"{folder} is an adapter without its base model; give the folder of the base{named}, with --adapter {folder}."
    )


def side_files(folder: Path) -> dict[str, Callable[[], bytes]]:
    """The files of a folder that go along with its tensors, by their path in it."""
    files = [folder / name for name in SIDE_FILE_NAMES]
    if (folder / MODULES_FILE).is_file():
        files += [*sorted(folder.glob("sentence_*_config.json")), *_step_files(folder)]
    return {str(file.relative_to(folder)): file.read_bytes for file in files if file.is_file()}


def read_side_file(files: Mapping[str, Callable[[], bytes]], name: str) -> Mapping[str, Any]:
    """The JSON object in a side file, empty where there is none; raises InputError when it is damaged."""
    if name not in files:
        return {}
    try:
        content = json.loads(files[name]())
    except (ValueError, RecursionError) as error:
        raise InputError(f"The checkpoint's {name} is not readable JSON ({error}); restore it.") from error
    if not isinstance(content, dict):
        raise InputError(f"The checkpoint's {name} holds no JSON object; restore it from the model's source.")
    return content


def _step_files(folder: Path) -> list[Path]:
    """Settings and weights of the steps of a sentence-transformers folder, each in a folder of its own."""
    path = folder / MODULES_FILE
    try:
        steps = [str(step["path"]) for step in json.loads(path.read_bytes()) if step.get("path")]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} does not list the folders of steps ({error}); download it again.") from error
    return [folder / step / name for step in steps for name in (CONFIG_NAME, SINGLE_NAME)]
