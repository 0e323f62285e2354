"""Mixed precision by rule: `--keep PATTERN=PRECISION` gives weights another precision than the rest.

Data flow: `lm_head=int8` → `Rule` → which of the graph's weights it names → `chooser`, the precision of each weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from truecast.errors import InputError
from truecast.weights.names import INTEGERS
from truecast.weights.precision import Precision

KEPT = ("as-is", "fp32", "int8", "int4", *INTEGERS)
"""Precisions that a rule may give."""
BASE = "model."
"""What the names of most models begin with; patterns may leave it out."""
NAMED_AT_MOST = 3
"""How many names an error lists."""


@dataclass(frozen=True)
class Rule:
    """A shell pattern (`*`, `?`, `[…]`) over the names of modules and weights, and the precision of what it matches."""

    pattern: str
    precision: str

    def __str__(self) -> str:
        return f"{self.pattern}={self.precision}"

    @classmethod
    def parse(cls, text: str) -> Rule:
        """`PATTERN=PRECISION`; raises InputError for anything else."""
        pattern, sign, precision = text.rpartition("=")
        if not sign or not pattern:
            raise InputError(f"--keep {text!r} is no rule; write PATTERN=PRECISION, for example 'lm_head=int8'.")
        if precision not in KEPT:
            raise InputError(f"--keep {text!r} asks for {precision!r}; a rule gives one of {', '.join(KEPT)}.")
        return cls(pattern, precision)

    def matches(self, weight: str) -> bool:
        """Whether the pattern names a weight, or the module that owns it, with or without `model.` in front."""
        module = weight.removesuffix(".weight")
        names = {weight, module, weight.removeprefix(BASE), module.removeprefix(BASE)}
        return any(fnmatchcase(name, self.pattern) for name in names)


def chooser(
    rules: Sequence[Rule],
    weights: Sequence[str],
    tied: tuple[str, str] | None,
    precisions: Mapping[str, Precision],
    other: Precision,
) -> Callable[[str], Precision]:
    """The precision of every weight: that of the last rule that matches it, else `other`.

    Args:
        rules: in the order given.
        weights: the names that rules may match: products, and the table of token embeddings.
        tied: two names of one weight, which then has the precision that either is given.
        precisions: what the names in rules stand for.
        other: for every weight that no rule matches.

    Raises:
        InputError: a rule matches nothing, or the two names of a tied weight are given different precisions.
    """
    for rule in rules:
        if not any(rule.matches(weight) for weight in weights):
            raise InputError(
                f"--keep {str(rule)!r} matches no weight of the model; there are {_listed(weights)}. "
                "Patterns name products and the token embedding, and `*` matches dots too."
            )
    given = {weight: rule.precision for weight in weights for rule in rules if rule.matches(weight)}
    if tied is not None:
        _tie(given, *tied)
    return lambda weight: precisions[given[weight]] if weight in given else other


def _tie(given: dict[str, str], embedding: str, head: str) -> None:
    """Gives both names of one weight one precision."""
    named = {name: given[name] for name in (embedding, head) if name in given}
    if len(set(named.values())) > 1:
        said = " but ".join(f"{name} {precision}" for name, precision in named.items())
        raise InputError(f"The head and the token embedding are one weight, but --keep gives {said}; name one of them.")
    for precision in named.values():
        given[embedding] = given[head] = precision


def _listed(weights: Iterable[str]) -> str:
    names = list(weights)
    more = f" and {len(names) - NAMED_AT_MOST} more" if len(names) > NAMED_AT_MOST else ""
    return ", ".join(names[:NAMED_AT_MOST]) + more
