"""From what a user names to the author's module and its weights as a checkpoint.

Data flow: a Hugging Face folder and a task → the model under fake tensors, its weights unread in the folder; a factory
on the import path, or a module in memory → the module itself, its state as a checkpoint in memory.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from truecast.checkpoint import open_checkpoint
from truecast.checkpoint.castable import require_castable
from truecast.checkpoint.folder import CONFIG_NAME, read_config, side_files
from truecast.checkpoint.memory import memory_checkpoint
from truecast.checkpoint.model import Array, Checkpoint
from truecast.checkpoint.tasks import MODULES_FILE, SENTENCES, chosen_task
from truecast.errors import InputError
from truecast.trace.author import AuthorModule, Dynamic, in_memory
from truecast.trace.explaining import explained
from truecast.trace.pooling import require_alone, with_steps
from truecast.trace.skeleton import fake_tensors
from truecast.trace.tasks import author_of, text_inputs

HALF_DTYPES: Mapping[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""What modules are cast to before the trace, by the name of the precision; others stay float32."""


@dataclass(frozen=True)
class ModuleSource:
    """What a user names.

    `path` is a folder, or what a factory is called with; `module` is one in memory. `factory`, "package.file:name" or
    "FILE.py:name", takes the path and gives a module, or (module, example inputs), or these and the free axes.
    `adapter` is the folder of an adapter that belongs to the folder at `path`.
    """

    path: Path | None = None
    module: nn.Module | None = None
    task: str | None = None
    factory: str | None = None
    example_inputs: Any = None
    dynamic: Dynamic | None = None
    trust_remote_code: bool = False
    adapter: Path | None = None


def open_author(
    source: ModuleSource, dtype: torch.dtype = torch.float32, *, fake: bool = True
) -> tuple[AuthorModule, Checkpoint]:
    """The author's module in `dtype`, and where its weights are.

    The module of a Hugging Face folder is made of fake tensors (`AuthorModule.mode` is then set), or, without `fake`,
    of real ones with random values; others are whole.
    """
    if source.adapter is not None and (source.module is not None or source.factory is not None):
        raise InputError("--adapter is for a Hugging Face folder; add the adapter to a module of your own yourself.")
    if source.module is not None:
        if source.example_inputs is None:
            raise InputError("A module needs example_inputs: one tensor for every input of its forward().")
        return _real(source, source.module, source.example_inputs, {}, dtype)
    assert source.path is not None
    if source.factory is not None:
        made, examples, dynamic = made_by(source.factory, source.path)
        folder = source.path if source.path.is_dir() else None
        files = side_files(folder) if folder else {}
        asked = replace(source, dynamic=source.dynamic or dynamic)
        return _real(asked, made, examples if source.example_inputs is None else source.example_inputs, files, dtype)
    checkpoint = open_checkpoint(source.path, source.adapter)
    task = chosen_task(checkpoint, source.task)
    require_castable(checkpoint, task)
    if task == SENTENCES:
        checkpoint = with_steps(checkpoint)
    elif source.task is None and MODULES_FILE in checkpoint.side_files:
        require_alone(checkpoint)
    with fake_tensors() if fake else nullcontext() as mode:
        author = author_of(checkpoint, task, dtype, source.trust_remote_code)
    return replace(author, mode=mode).with_axes(source.dynamic), checkpoint


def _real(
    source: ModuleSource,
    module: nn.Module,
    examples: Any,
    files: Mapping[str, Callable[[], bytes]],
    dtype: torch.dtype,
) -> tuple[AuthorModule, Checkpoint]:
    origin = source.factory or "a module in memory"
    config = _config(module, source.path)
    if examples is None:
        specs = text_inputs(module, config, files)
        author = in_memory(module, {spec.name: spec.example for spec in specs}, origin)
        author = replace(author, inputs=tuple(specs))
    else:
        author = in_memory(module, examples, origin)
    author = author.with_axes(source.dynamic)
    arrays: dict[str, Array] = {name: _array(tensor) for name, tensor in author.module.state_dict().items()}
    checkpoint = memory_checkpoint(source.path or Path(origin), arrays, config, files)
    return replace(_cast(author, dtype), config=config), checkpoint


def _cast(author: AuthorModule, dtype: torch.dtype) -> AuthorModule:
    specs = tuple(
        replace(spec, example=spec.example.to(dtype)) if spec.example.is_floating_point() else spec
        for spec in author.inputs
    )
    return replace(author, module=author.module.to(dtype), inputs=specs)


def _config(module: nn.Module, path: Path | None) -> Mapping[str, Any]:
    config: Any = getattr(module, "config", None)
    if hasattr(config, "to_dict"):
        found: Mapping[str, Any] = config.to_dict()
        return found
    return read_config(path / CONFIG_NAME) if path is not None and (path / CONFIG_NAME).is_file() else {}


def _array(tensor: Tensor) -> Array:
    tensor = tensor.detach().cpu()
    wide = tensor.float() if tensor.dtype is torch.bfloat16 else tensor
    array: Array = wide.contiguous().numpy()
    return array


def made_by(name: str, path: Path | None, option: str = "--module") -> tuple[nn.Module, Any, Dynamic | None]:
    """What a factory gives for a path: module, examples and free axes, the last two None where it gives none.

    Args:
        name: "package.file:function" or "FILE.py:function".
        path: what the function is called with.
        option: what the user wrote the name behind, for messages.

    Raises:
        InputError: there is no such function of one argument, or it gives no module.
    """
    function = _function(name, option)
    with explained(f"{option} {name} makes no module", "mend it"):
        made = function(path)
    parts = made if isinstance(made, tuple) else (made,)
    module, examples, dynamic = (*parts, None, None)[:3]
    if not isinstance(module, nn.Module):
        raise InputError(f"{option} {name} gives {type(module).__name__}, not a torch.nn.Module; return a module.")
    return module, examples, dynamic


def _function(name: str, option: str) -> Callable[[Path | None], Any]:
    place, colon, attribute = name.rpartition(":")
    if not colon or not place or not attribute:
        raise InputError(f"{option} {name!r} names no function; write package.file:function or FILE.py:function.")
    file = Path(place) if place.endswith(".py") else None
    if file is not None and not file.is_file():
        raise InputError(f"{option} {name}: there is no file {file}; give a path from here, or a whole one.")
    here = str(Path.cwd() if file is None else file.parent.absolute())
    if here not in sys.path:
        sys.path.insert(0, here)
    with explained(f"{option} {name} cannot be imported", "run where it can be, or mend it"):
        imported = importlib.import_module(place if file is None else file.stem)
    function = getattr(imported, attribute, None)
    if function is None:
        raise InputError(f"{option} {name}: {place} has no {attribute}; name a function that is there.")
    if not callable(function) or not inspect.signature(function).parameters:
        raise InputError(f"{option} {name} is no function of one path; write one that takes SOURCE and gives a module.")
    return function  # type: ignore[no-any-return]
