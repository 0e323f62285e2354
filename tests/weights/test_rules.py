"""Mixed precision by rule: what a pattern names, which rule counts, and what is refused."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from truecast.errors import InputError
from truecast.weights.precision import Precision
from truecast.weights.rules import Rule, chooser

WEIGHTS = (
    "model.embed_tokens.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.1.mlp.up_proj.weight",
    "model.layers.10.mlp.up_proj.weight",
    "lm_head.weight",
)
EMBEDDING, HEAD = WEIGHTS[0], WEIGHTS[-1]
KEPT = {name: Precision(name, ir.DataType.FLOAT) for name in ("fp32", "int8", "int4", "as-is")}


def chosen(*rules: str, tied: tuple[str, str] | None = None) -> dict[str, str]:
    """What each weight is given, where it is not int4."""
    choose = chooser([Rule.parse(rule) for rule in rules], WEIGHTS, tied, KEPT, KEPT["int4"])
    return {name: choose(name).name for name in WEIGHTS if choose(name).name != "int4"}


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("lm_head", {HEAD}),
        ("lm_head.weight", {HEAD}),
        ("embed_tokens", {EMBEDDING}),
        ("model.embed_tokens", {EMBEDDING}),
        ("layers.1.*", {WEIGHTS[2]}),
        ("layers.?.mlp.up_proj", {WEIGHTS[1], WEIGHTS[2]}),
        ("layers.[1]*", {WEIGHTS[2], WEIGHTS[3]}),
        ("*up_proj", set(WEIGHTS[1:4])),
        ("*", set(WEIGHTS)),
    ],
)
def test_a_pattern_names_modules_and_weights(pattern: str, names: set[str]) -> None:
    assert set(chosen(f"{pattern}=int8")) == names


def test_the_last_rule_that_matches_counts() -> None:
    assert chosen("*=int8", "layers.*=fp32", "layers.0.*=int4") == {
        EMBEDDING: "int8",
        WEIGHTS[2]: "fp32",
        WEIGHTS[3]: "fp32",
        HEAD: "int8",
    }


@pytest.mark.parametrize("text", ["lm_head", "=int8", ""])
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is no rule; write PATTERN=PRECISION"):
        Rule.parse(text)


@pytest.mark.parametrize("precision", ["fp16", "int3", ""])
def test_a_precision_that_no_rule_gives_is_refused(precision: str) -> None:
    with pytest.raises(InputError, match="a rule gives one of as-is, fp32, int8, int4"):
        Rule.parse(f"lm_head={precision}")


@pytest.mark.parametrize("pattern", ["nothing", "layers.7.*", "head", "*norm*", "LM_HEAD"])
def test_a_pattern_that_matches_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(InputError, match=r"matches no weight of the model; there are model.embed_tokens.weight"):
        chosen("lm_head=int8", f"{pattern}=int8")


def test_both_names_of_one_weight_have_one_precision() -> None:
    for pattern in ("lm_head", "embed_tokens"):
        assert chosen(f"{pattern}=int8", tied=(EMBEDDING, HEAD)) == {EMBEDDING: "int8", HEAD: "int8"}


def test_two_precisions_of_one_weight_are_refused() -> None:
    with pytest.raises(InputError, match=r"are one weight, but --keep gives .*embed_tokens.weight fp32 but lm_head"):
        chosen("lm_head=int8", "embed_tokens=fp32", tied=(EMBEDDING, HEAD))
    assert chosen("lm_head=int8", "embed_tokens=fp32") == {EMBEDDING: "fp32", HEAD: "int8"}
