"""What a decoder's graph is given for one run of a point, beside its states."""

from __future__ import annotations

from typing import Any

import numpy as np

from truecast.artifact import GraphInfo
from truecast.proof.operators import Array
from truecast.proof.points import Point, Run
from truecast.runtime.decoder import KEEP_NAME, positions


def run_feeds(info: GraphInfo, point: Point, run: Run, keep: int | None = 0) -> dict[str, Any]:
    """Token ids, mask and positions of `run` by the names of the graph's inputs, also of those that it does not take.

    `keep` is the number of logits (0: of every position; None leaves it to the graph).
    """
    mask = point.mask[:, : run.end]
    kept = {} if keep is None else {KEEP_NAME: np.array(keep, np.int64)}
    return {
        "input_ids": point.tokens[:, run.start : run.end],
        "attention_mask": given_mask(info.padding, mask),
        "position_ids": positions(mask, run.end - run.start),
    } | kept


def given_mask(padding: str, mask: Array) -> Array:
    """A mask [batch, total] as the graph's contract has it: for `right`, as many ones as before, in front."""
    if padding != "right":
        return mask
    ones: Array = (np.arange(mask.shape[1]) < mask.sum(1, keepdims=True)).astype(np.int64)
    return ones
