"""The author's model in PyTorch with its weights, as it is served without ONNX: with transformers' own attention.

Data flow: the plan's folder → for a task of Hugging Face its class from `from_pretrained`, with the pooling of a
sentence-transformers folder behind it; with `module`, whatever that function builds.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from truecast.checkpoint import open_checkpoint
from truecast.checkpoint.tasks import FEATURES, SENTENCES, chosen_task
from truecast.errors import InputError
from truecast.study.plan import Model
from truecast.trace.author import outputs_of
from truecast.trace.opening import made_by
from truecast.trace.pooling import Finish, attach_steps, load_steps
from truecast.trace.skeleton import load_config
from truecast.trace.tasks import CLASSES, class_for


class Author(nn.Module):
    """A module in evaluation mode that gives its outputs by name; `finish` makes them of what forward() gives."""

    def __init__(self, module: nn.Module, finish: Finish | None = None) -> None:
        super().__init__()
        self.module, self.finish = module.eval(), finish

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names that forward() takes."""
        return tuple(inspect.signature(self.module.forward).parameters)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """The outputs by name."""
        outputs = outputs_of(self.module(**inputs))
        return outputs if self.finish is None else self.finish(outputs, inputs)


def build_author(model: Model, dtype: torch.dtype) -> Author:
    """The plan's model with its weights in `dtype`; raises InputError when it cannot be built."""
    if model.module is not None:
        made, *_ = made_by(model.module, model.source, "model.module")
        return Author(made.to(dtype))
    checkpoint = open_checkpoint(model.source)
    task = chosen_task(checkpoint, model.task)
    if task not in CLASSES:
        raise InputError(f"{model.source} is made for {task}, which a study cannot measure; name another task.")
    try:
        named = class_for(checkpoint, load_config(checkpoint, model.trust_remote_code), task)
        loaded, found = named.from_pretrained(
            model.source, dtype=dtype, output_loading_info=True, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise InputError(f"transformers cannot load {model.source} for {task}: {str(error).splitlines()[0]}") from error
    if found["missing_keys"] and task not in (FEATURES, SENTENCES):  # a pooler that nobody trained is left out
        raise InputError(
            f"{model.source} has no tensor {min(found['missing_keys'])!r}, which a model for {task} needs; "
            "transformers would make one up: name another task."
        )
    if task != SENTENCES:
        return Author(loaded)
    finish = attach_steps(loaded, checkpoint, dtype)
    load_steps(loaded, checkpoint)
    return Author(loaded, finish)
