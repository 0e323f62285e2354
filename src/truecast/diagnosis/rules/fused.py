"""TC111: a fused operator that is slower than what it stands for.

Measured with ONNX Runtime 1.31.1 on one thread of x86, rows of 384 to 4096 floats: its processor time is 2.7
to 4.5 times that of Add and LayerNormalization from 128 rows on, the same for one row. That of
SkipSimplifiedLayerNormalization is 1.0 to 1.7 times that of Add and RMSNormalization, too little to name.
"""

from __future__ import annotations

from truecast.diagnosis.evidence import Evidence, label
from truecast.diagnosis.model import Seen, seen
from truecast.diagnosis.rules.rule import INFO, Rule

SLOW_NORM = "SkipLayerNormalization"
FUSION = "SkipLayerNormFusion"
"""The rewrite of ONNX Runtime that makes it where it can tell the shapes of both operands."""


def slower_than_its_parts(evidence: Evidence) -> Seen | None:
    """The norm with a sum inside, in the file or, seen in a run, as ONNX Runtime's optimizer made it."""
    if evidence.provider != "cpu":
        return None
    written = [label(node) for node in evidence.nodes if node.op_type == SLOW_NORM]
    if written:
        return seen(written, "in the file")
    ran = () if evidence.observed is None else evidence.observed.ran(SLOW_NORM)
    return seen(
        (timing.name for timing in ran),
        "made by the runtime's optimizer",
        milliseconds=sum(timing.milliseconds for timing in ran),
        fix=f"Set optimization.disable_specified_optimizers={FUSION} for the session.",
    )


RULES = (
    Rule(
        "TC111",
        INFO,
        "A fused norm that is slower than its parts",
        "On the processor it takes about three times as long as Add and LayerNormalization: 7 % of a MiniLM's time.",
        "Write Add and LayerNormalization; where the optimizer fuses them, switch SkipLayerNormFusion off.",
        slower_than_its_parts,
    ),
)
