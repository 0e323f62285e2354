"""What every trace gives to binding: a graph without weights, and what its names mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import onnx_ir as ir
from torch import Tensor

from truecast.checkpoint.model import Checkpoint


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A traced module.

    `model`: the graph; its initializers are named after the module's parameters and buffers and hold no data, apart
    from `buffers`. `parameters` are all of the module's, with their shapes. `tied` maps a parameter to the one that the
    checkpoint stores in its place. `embedding` and `head` name the token embedding's and the head's weight, or are
    empty. `rename` gives the module's name of a checkpoint's tensor, `merge` the checkpoint with a tensor
    for every parameter of the module that it holds (`conversion`).
    """

    model: ir.Model
    buffers: dict[str, Tensor]
    parameters: dict[str, tuple[int, ...]]
    tied: dict[str, str]
    embedding: str
    head: str
    rename: Callable[[str], str]
    merge: Callable[[Checkpoint], Checkpoint] = lambda checkpoint: checkpoint
    lowered: Counter[str] = field(default_factory=Counter)
    traced: dict[str, str] = field(default_factory=dict)
