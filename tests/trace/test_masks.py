"""A mask function is read by what it lets a query see: causal, a causal window, or something no operator does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.masking_utils import (
    and_masks,
    causal_mask_function,
    chunked_causal_mask_function,
    or_masks,
    sliding_window_causal_mask_function,
)

from truecast.trace.context import LeafMismatch
from truecast.trace.seams import causal_window

Mask = Callable[..., torch.Tensor]
FEW = settings(max_examples=25, deadline=None)


def test_a_causal_mask_has_no_window() -> None:
    assert causal_window(causal_mask_function).window is None


@FEW
@given(st.integers(1, 1 << 17))
def test_a_causal_window_has_its_width(width: int) -> None:
    assert causal_window(sliding_window_causal_mask_function(width)).window == width


@FEW
@given(st.integers(2, 1 << 17))
def test_chunks_are_no_window(size: int) -> None:
    with pytest.raises(LeafMismatch):
        causal_window(lambda batch, head, query, key: (key <= query) & (key // size == query // size))


def test_transformers_own_chunks_are_no_window() -> None:
    left_padding = torch.zeros(1, dtype=torch.long)
    with pytest.raises(LeafMismatch):
        causal_window(chunked_causal_mask_function(6, left_padding))


def everything(batch: int, head: int, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return torch.tensor(True)


def prefix(batch: int, head: int, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return (key < 3) & (query >= 0)


def dilated(batch: int, head: int, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return (key <= query) & ((query - key) % 2 == 0)


def anti_causal(batch: int, head: int, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return key >= query


def strictly_causal(batch: int, head: int, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return key < query


@pytest.mark.parametrize(
    "mask",
    [
        everything,
        dilated,
        anti_causal,
        strictly_causal,
        or_masks(causal_mask_function, prefix),
        or_masks(sliding_window_causal_mask_function(16), and_masks(causal_mask_function, prefix)),
    ],
)
def test_other_masks_are_no_window(mask: Mask) -> None:
    with pytest.raises(LeafMismatch, match="attention mask"):
        causal_window(mask)


def test_a_mask_that_reads_a_tensor_by_row_depends_on_more_than_positions() -> None:
    padding = torch.ones(1, 4, dtype=torch.bool)
    with pytest.raises(LeafMismatch, match="more than positions"):
        causal_window(lambda batch, head, query, key: (key <= query) & padding[batch, key])
