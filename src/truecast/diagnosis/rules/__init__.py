"""The registry: every rule, by family. A new rule is one function and one entry in its family's RULES."""

from __future__ import annotations

from collections import Counter

from truecast.diagnosis.rules import (
    attention,
    declared,
    dtypes,
    fused,
    grid,
    kernels,
    quantization,
    quantizers,
    session,
    shapes,
    weights,
)
from truecast.diagnosis.rules.rule import Rule, findings_of

RULES: tuple[Rule, ...] = (
    *kernels.RULES,
    *fused.RULES,
    *quantization.RULES,
    *shapes.RULES,
    *grid.RULES,
    *quantizers.RULES,
    *dtypes.RULES,
    *declared.RULES,
    *weights.RULES,
    *attention.RULES,
    *session.RULES,
)

_twice = [code for code, count in Counter(rule.code for rule in RULES).items() if count > 1]
if _twice:
    raise AssertionError(f"codes are used twice: {_twice}")

__all__ = ["RULES", "Rule", "findings_of"]
