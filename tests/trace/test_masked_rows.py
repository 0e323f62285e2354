"""Queries that see no key: torch's own kinds of attention, each as the author's module computes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import truecast
from truecast.artifact import Status

WIDTH, ROWS = 8, 3


def encoder(norm: nn.Module | None = None, **options: object) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, **{"batch_first": True, **options})  # type: ignore[arg-type]
    return nn.TransformerEncoder(layer, 1, norm, enable_nested_tensor=not options)


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (2, -1)).transpose(1, 2)


class Kinds(nn.Module):
    """x [rows, length, width] attends to itself; `padding` [rows, length] is true where a key is hidden."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.nested, self.first = encoder(nn.LayerNorm(WIDTH)), encoder(norm_first=True)
        self.odd = encoder(bias=False)
        self.whole = nn.Transformer(WIDTH, 2, 1, 1, 16, batch_first=True)

    def forward(self, x: Tensor, padding: Tensor) -> dict[str, Tensor]:
        q, k = heads(2 * x), heads(x)
        floats = torch.zeros(padding.shape).masked_fill(padding, -torch.inf)
        alone, weights = self.attention(x, x, x, padding)
        return {
            "boolean": scaled_dot_product_attention(q, k, k, attn_mask=~padding[:, None, None]),
            "float": scaled_dot_product_attention(q, k, k, floats[:, None, None], scale=0.7),
            "softmax": (q @ k.mT).masked_fill(padding[:, None, None], -torch.inf).softmax(-1) @ k,
            "alone": alone,
            "weights": weights,
            "alone, float mask": self.attention(x, x, x, floats, need_weights=False)[0],
            "across": self.attention(2 * x, x, x, padding, need_weights=False)[0],
            "encoder": self.nested(x, src_key_padding_mask=padding),
            "norm first": self.first(x, src_key_padding_mask=padding),
            "no bias": self.odd(x, src_key_padding_mask=padding),
            "transformer": self.whole(x, x, src_key_padding_mask=padding, memory_key_padding_mask=padding),
        }


def masks() -> Iterator[Tensor]:
    """None hidden, some on the right, a whole row too; the same on the left."""
    for length in (1, 5):
        none = torch.zeros(ROWS, length, dtype=torch.bool)
        yield none
        for part in (slice(length // 2 + 1, None), slice(0, length // 2)):
            some, whole = none.clone(), none.clone()
            some[1, part] = whole[1, part] = whole[2] = True
            yield from (some, whole)


@pytest.fixture(scope="module")
def kinds() -> Kinds:
    torch.manual_seed(0)
    return Kinds().eval()


@pytest.fixture(scope="module")
def graph(kinds: Kinds, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Tensor, Tensor], dict[str, np.ndarray]]:
    """What the exported graph gives, by the outputs' names."""
    out = tmp_path_factory.mktemp("rows") / "out"
    example = torch.randn(ROWS, 5, WIDTH), torch.zeros(ROWS, 5, dtype=torch.bool)
    free = {0: "rows", 1: "length"}
    options = {"example_inputs": example, "dynamic": {"x": free, "padding": free}, "verify": False}
    truecast.export(kinds, out, **options)  # type: ignore[arg-type]
    session = ort.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]

    def run(x: Tensor, padding: Tensor) -> dict[str, np.ndarray]:
        found = session.run(None, {"x": x.numpy(), "padding": padding.numpy()})
        return dict(zip(names, found, strict=True))

    return run


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_rows_that_see_nothing_are_as_the_author_has_them(
    kinds: Kinds, graph: Callable[[Tensor, Tensor], dict[str, np.ndarray]]
) -> None:
    odd: set[str] = set()
    for mask in masks():
        x = torch.randn(*mask.shape, WIDTH)
        with torch.no_grad():
            wanted = kinds(x, mask)
        found = graph(x, mask)
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, atol=2e-5, err_msg=f"{name}, {mask.tolist()}")
            odd |= {name} if value.isnan().any() else set()
    assert odd == {"softmax", "alone", "weights", "encoder", "norm first", "transformer"}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_with_a_padding_mask_is_proven(tmp_path: Path) -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder()

        def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
            return self.encoder(x, src_key_padding_mask=padding_mask)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    example = torch.randn(ROWS, 5, WIDTH), torch.zeros(ROWS, 5, dtype=torch.bool)
    free = {0: "rows", 1: "length"}
    result = truecast.export(
        Padded(), tmp_path / "out", example_inputs=example, dynamic={"x": free, "padding_mask": free}
    )
    assert result.manifest.certificate.status is Status.PROVEN
