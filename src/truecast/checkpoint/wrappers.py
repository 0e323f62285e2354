"""Names that training wrapped: what torch.compile, data parallelism and peft put around a model is in no model's names.

Data flow: names of a folder's tensors → the same without the wrappers' parts, where every tensor has them, and a
sentence for the user.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from truecast.checkpoint.model import StoredTensor

INSIDE = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing write wherever they wrap a module."""
FRONTS = ("module.", "base_model.model.", "pretrained_model.")
"""What DistributedDataParallel, peft and trl write in front of all names of the model that they hold."""
VALUE_HEAD = re.compile(r"(^|\.)(v_head|value_head)\.")
"""trl's second head lies beside the model, not in it."""


def unwrapped(tensors: Mapping[str, StoredTensor]) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """The tensors by the names that the model has for them, and a notice where these are not the file's."""
    plain = {name: INSIDE.sub("", name) for name in tensors}
    found = list(dict.fromkeys(part for name in tensors for part in INSIDE.findall(name)))
    while (front := _front(plain.values())) is not None:
        found.append(front)
        plain = {name: short.removeprefix(front) for name, short in plain.items()}
    if not found or len(set(plain.values())) < len(plain):
        return dict(tensors), ()
    notice = f"The names of the tensors were read without {' and '.join(found)}, which training wrote into them."
    return {plain[name]: replace(tensor, name=plain[name]) for name, tensor in tensors.items()}, (notice,)


def _front(names: Iterable[str]) -> str | None:
    """What all names of a model begin with."""
    of_model = [name for name in names if VALUE_HEAD.search(name) is None]
    return next((front for front in FRONTS if of_model and all(name.startswith(front) for name in of_model)), None)
