"""The grid of a module: how far it goes, how many rows it has, and what bounds it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from truecast.proof.module_points import HEAVIEST, largest_tensor, module_grid
from truecast.trace.author import AuthorModule, Axis, InputSpec

BATCH = Axis("batch_size")


class Reader(nn.Module):
    """Attention over ids with a mask, both [batch, length]: it makes scores [batch, heads, length, length]."""

    def __init__(self, heads: int = 1) -> None:
        super().__init__()
        self.embedding, self.heads = nn.Embedding(7, 4), heads

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.embedding(input_ids)[:, None].expand(-1, self.heads, -1, -1)
        scores = (states @ states.transpose(2, 3)).masked_fill(attention_mask[:, None, None] == 0, -1e9)
        return scores.softmax(-1) @ states


def reader(length: Axis, heads: int = 1, **config: object) -> AuthorModule:
    axes = {0: BATCH, 1: length}
    example = torch.ones(3, 17, dtype=torch.long)
    inputs = (InputSpec("input_ids", example, axes, 7), InputSpec("attention_mask", example, axes, 2))
    return AuthorModule(Reader(heads), inputs, config=config)


def shapes(author: AuthorModule) -> list[tuple[int, ...]]:
    return [tuple(point.tensors[0].shape) for point in module_grid(author).points]


def test_the_greatest_length_is_run_once_with_one_row() -> None:
    found = shapes(reader(Axis("sequence_length", 1, 5000)))
    assert [shape for shape in found if shape[1] > 64] == [(1, 5000)]
    assert not module_grid(reader(Axis("sequence_length", 1, 5000))).notes


def test_an_axis_without_an_end_goes_beyond_a_long_text() -> None:
    assert max(length for _, length in shapes(reader(Axis("sequence_length")))) >= 2000


def test_rows_go_beyond_eight() -> None:
    rows = {shape[0] for shape in shapes(reader(Axis("sequence_length", 1, 80)))}
    assert {1, 2, 3, 9, 64} <= rows


def test_rows_are_few_whatever_their_axis_is_called() -> None:
    author = reader(Axis("sequence_length", 1, 80))
    rows = Axis("b")
    specs = tuple(replace(spec, axes={**spec.axes, 0: rows}) for spec in author.inputs)
    assert max(shape[0] for shape in shapes(replace(author, inputs=specs))) == 64


class Branching(nn.Module):
    """torch.cond, which compiles both branches at its first call."""

    def forward(self, x: Tensor) -> Any:
        return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x * 2, (x,))


def test_looking_at_sizes_leaves_the_module_as_it_was() -> None:
    x = torch.ones(2, 5)
    author = AuthorModule(Branching(), (InputSpec("x", x, {0: BATCH, 1: Axis("length")}),))
    largest_tensor(author, {"batch_size": 2, "length": 5000})
    assert torch.equal(author.module(x), x + 1)


def test_a_size_that_takes_too_much_memory_is_made_smaller_and_said() -> None:
    author = reader(Axis("sequence_length", 1, 30_000), heads=4)
    grid = module_grid(author)
    longest = max(point.tensors[0].shape[1] for point in grid.points)
    sizes = {"batch_size": 1, "sequence_length": longest}
    assert HEAVIEST / 2 < largest_tensor(author, sizes) == 4 * 4 * longest**2 <= HEAVIEST
    assert grid.notes == ("sequence_length was not run at 30000: the module would make a tensor of 14.4 GB.",)


def test_large_fixed_inputs_have_fewer_rows() -> None:
    """1500 frames: a row's scores take 9 MB for each head."""
    author = reader(Axis("sequence_length"), heads=8)
    specs = [replace(spec, example=torch.ones(3, 1500, dtype=torch.long), axes={0: BATCH}) for spec in author.inputs]
    rows = {shape[0] for shape in shapes(replace(author, inputs=tuple(specs)))}
    assert {1, 2, 3} < rows
    assert max(rows) * 8 * 4 * 1500**2 <= HEAVIEST


def test_paddings_are_longer_than_the_widest_window() -> None:
    author = reader(
        Axis("sequence_length", 1, 500),
        text_config={"sliding_window": 64, "layers_to_window": [100, 8], "id2label": {0: "A"}},
    )
    masks = [point.tensors[1] for point in module_grid(author).points if point.name.startswith("left padding")]
    longest = max(int((mask == 0).sum(1).max()) for mask in masks)
    assert 100 < longest < 200
    assert {mask.shape[1] for mask in masks} == {5, 159}


def test_switches_and_windows_beyond_the_positions_add_no_size() -> None:
    author = reader(Axis("sequence_length", 1, 80), use_sliding_window=True, sliding_window=4096)
    assert max(length for _, length in shapes(author)) == 80
    plain = shapes(reader(Axis("sequence_length", 1, 80)))
    assert shapes(reader(Axis("sequence_length", 1, 80), use_sliding_window=True)) == plain


def test_a_padding_mask_of_torchs_own_modules_is_true_where_nothing_is() -> None:
    example = torch.zeros(3, 17, dtype=torch.bool)
    mask = InputSpec("src_key_padding_mask", example, {0: BATCH, 1: Axis("length", 1, 20)})
    points = {point.name: point.tensors[0] for point in module_grid(AuthorModule(Reader(), (mask,))).points}
    right, left = (next(value for name, value in points.items() if name.startswith(side)) for side in ("right", "left"))
    assert not right[:, 0].any() and right[1:, -1].all() and left[1:, 0].all() and not left[:, -1].any()
    assert any(value.all(1).any() for value in points.values())  # nothing but padding is tried as well
