"""Errors of foreign code become one sentence: kind of trouble, the author's line, what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from truecast.dialects import dialect
from truecast.errors import InputError
from truecast.trace import module
from truecast.trace.author import in_memory
from truecast.trace.decoder import trace_decoder
from truecast.trace.explaining import NO_VALUES, explained, is_authors
from truecast.trace.layers import find_layers
from truecast.trace.module import trace_module
from truecast.trace.torchscript import trace_torchscript

INSIDE = r"\(test_explaining\.py, line \d+\)"


class Author(nn.Module):
    """A module whose forward() is the given function."""

    def __init__(self, does: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.does = does

    def forward(self, x: Tensor) -> Any:
        return self.does(x)


def skips(x: Tensor) -> Tensor:
    return torch.isin(x, torch.tensor([3, 4]))


def turns(x: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.float().reshape(-1, 3, 2))
    return torch.onnx.ops.symbolic("theirs::Angle", [pairs], dtype=torch.float32, shape=pairs.shape, version=1)


def reads(x: Tensor) -> Tensor:
    return x[:, : int(x.max())]


def unsorted(x: Tensor) -> Tensor:
    raise ValueError("`lengths` must be sorted.\nSee https://example.org/lengths for more.")


def refusal(does: Callable[[Tensor], Any], exporter: str = "dynamo") -> str:
    author = in_memory(Author(torch.zeros_like), torch.ones(4, 6, dtype=torch.long))
    author.module.does = does
    with pytest.raises(InputError) as caught:
        if exporter == "dynamo":
            trace_module(author, dialect("ort"))
        else:
            trace_torchscript(author, 20)
    message = str(caught.value)
    assert "\n" not in message and "\x1b" not in message and "http" not in message
    assert message.endswith(".") and ".." not in message
    return message


def test_an_operator_that_onnx_lacks_is_named_with_the_line_that_uses_it() -> None:
    assert re.search(rf"traced: in Author.forward {INSIDE} ONNX has no operator that does torch's \w+;", refusal(skips))


def test_complex_numbers_are_called_so() -> None:
    assert re.search(rf"in Author.forward {INSIDE} numbers are complex, and ONNX has no such type", refusal(turns))


def test_code_that_reads_values_is_named_with_its_line() -> None:
    assert re.search(rf"traced: in reads {INSIDE} {NO_VALUES}; write it in another way\.$", refusal(reads))


def test_an_author_is_quoted_by_one_line() -> None:
    assert re.search(rf"unsorted {INSIDE} cannot go on \(lengths must be sorted\); ", refusal(unsorted))


def test_the_older_exporter_is_explained_alike() -> None:
    assert "ONNX has no operator that does torch's isin; take the default one." in refusal(skips, "torchscript")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hidden_size": -64}, "(Trying to create tensor with negative dimension -64"),
        ({"num_attention_heads": 0}, "divides by zero"),
        ({"hidden_act": "blorp"}, "LlamaMLP.__init__ (modeling_llama.py, line "),
        ({"hidden_act": "blorp"}, "knows no 'blorp' where hidden_act is 'blorp'"),
        ({"rope_parameters": {"rope_type": "warp", "rope_theta": 1e4}}, "knows no 'warp'"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": "x"}},
            "compute_default_rope_parameters (modeling_llama.py, ",
        ),
        ({"pad_token_id": 10**6}, "(Padding_idx must be within num_embeddings)"),
    ],
)
def test_settings_that_the_author_cannot_use_are_named(settings: dict[str, Any], said: str) -> None:
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    with pytest.raises(InputError) as caught:
        with explained("config.json is not valid", "correct config.json"):
            config = LlamaConfig(**{**small, "vocab_size": 320, **settings})
        trace_decoder(config, dialect("ort"))
    assert said in str(caught.value)
    assert str(caught.value).endswith("; correct config.json.")


def test_a_package_that_is_not_installed_is_named() -> None:
    def lacks(x: Tensor) -> Tensor:
        import no_such_kernels

        return no_such_kernels.norm(x)  # type: ignore[no-any-return]

    assert "needs the Python package no_such_kernels, which is not installed" in refusal(lacks)


def test_faults_of_our_own_are_not_called_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "require_ranges", find_layers)
    with pytest.raises(AttributeError):
        trace_module(in_memory(nn.Linear(2, 2), torch.ones(3, 2)), dialect("ort"))


def test_the_authors_are_told_from_the_libraries_that_run_them() -> None:
    import transformers.models.auto.auto_factory as auto
    import transformers.models.llama.modeling_llama as llama

    assert is_authors(llama.__file__) and is_authors(__file__)
    assert not any(is_authors(file) for file in (auto.__file__, torch.__file__, re.__file__, "<string>"))
