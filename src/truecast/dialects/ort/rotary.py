"""Rotary position embedding as com.microsoft.RotaryEmbedding with the author's own cos and sin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from truecast.dialects.model import RotaryForm, Tensor
from truecast.dialects.probe import PROBE_SEED, agrees, author_call

HEADS, KEY_HEADS, SEQUENCE, WIDTH, EXTRA = 3, 2, 5, 8, 4
"""Sizes of the probe: all different, so that a mixed-up axis shows."""


def _rotate(states: Tensor, cos: Tensor, sin: Tensor, form: RotaryForm) -> Tensor:
    """The operator's formula; cos and sin [batch, sequence, width/2], states 4-D with heads at `form.head_axis`."""
    cos, sin = cos.unsqueeze(form.head_axis), sin.unsqueeze(form.head_axis)
    width = 2 * cos.shape[-1]
    turned, rest = states[..., :width], states[..., width:]
    first, second = (
        (turned[..., 0::2], turned[..., 1::2])
        if form.interleaved
        else (turned[..., : width // 2], turned[..., width // 2 :])
    )
    real, imaginary = first * cos - second * sin, first * sin + second * cos
    pairs = torch.stack((real, imaginary), -1).flatten(-2) if form.interleaved else torch.cat((real, imaginary), -1)
    return torch.cat((pairs, rest), -1)


def _angles(table: Tensor, form: RotaryForm) -> Tensor:
    """One value per pair from the author's table, which holds every angle twice: [..., width] → [..., width/2]."""
    if form.once:
        return table
    return table[..., 0::2] if form.repeated else table[..., : table.shape[-1] // 2]


def _table(angles: Tensor, form: RotaryForm) -> Tensor:
    """The inverse: a table as the form has it from one value per pair."""
    if form.once:
        return angles
    return angles.repeat_interleave(2, -1) if form.repeated else torch.cat((angles, angles), -1)


def _forms(head_axis: int) -> Iterator[RotaryForm]:
    for repeated in (False, True):
        for interleaved in (False, True):
            yield RotaryForm(interleaved, repeated, head_axis)
    for interleaved in (False, True):
        yield RotaryForm(interleaved, repeated=False, head_axis=head_axis, once=True)


class RotaryEmbedding:
    """Recognises rotation of halves and of neighbours, full or partial."""

    def recognise(self, function: Callable[..., tuple[Tensor, Tensor]], head_axis: int) -> RotaryForm | None:
        """See `RotaryLowering`."""
        forms = (form for form in _forms(head_axis) if all(self._same(function, form, extra) for extra in (0, EXTRA)))
        whole = (replace(f, partial=False) for f in _forms(head_axis) if self._same(function, f, 0))
        return next(forms, None) or next(whole, None)

    def _same(self, function: Callable[..., tuple[Tensor, Tensor]], form: RotaryForm, extra: int) -> bool:
        generator = torch.Generator().manual_seed(PROBE_SEED)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        def states(heads: int) -> Tensor:
            shape = [2, SEQUENCE, WIDTH + extra]
            shape.insert(form.head_axis, heads)
            return random(*shape)

        query, key = states(HEADS), states(KEY_HEADS)
        angles = random(2, SEQUENCE, WIDTH // 2)
        tables = [_table(part, form) for part in (angles.cos(), angles.sin())]
        kwargs = {} if form.head_axis == 1 else {"unsqueeze_dim": form.head_axis}
        result = author_call(function, query, key, *tables, **kwargs)
        if not (isinstance(result, tuple) and len(result) == 2):
            return False
        cos, sin = (_angles(table, form) for table in tables)
        return all(agrees(got, _rotate(x, cos, sin, form)) for got, x in zip(result, (query, key), strict=True))

    def emit(self, form: RotaryForm, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """See `RotaryLowering`.

        The operator wants a table of rows and row numbers; the rows are the tokens' own cos and sin, numbered in order.
        """
        flat = states.transpose(1, 2) if form.head_axis == 1 else states
        batch, sequence, heads, head_dim = flat.shape
        cos, sin = (_table(part, replace(form, once=False)) if form.once else part for part in (cos, sin))
        width = cos.shape[-1]
        rotated = torch.onnx.ops.symbolic(
            "truecast::Rotary",
            [flat.flatten(2), cos, sin],
            {
                "interleaved": int(form.interleaved),
                "repeated": int(form.repeated),
                "num_heads": heads,
                "rotary_embedding_dim": 0 if width == head_dim else width,
            },
            dtype=states.dtype,
            shape=[batch, sequence, heads * head_dim],
            version=1,
        ).view(batch, sequence, heads, head_dim)
        return rotated.transpose(1, 2) if form.head_axis == 1 else rotated
