"""PROVE: the artifact against the author's own model, in its real runtime; every check has a number.

| tier | what | where |
|---|---|---|
| static | the graph and its weights, as they lie | `static`, `weights`, `tables` |
| parity | the same logits, at every point of a grid | `points`, `parity`, `variants` |
| generation | the same greedy texts | `generation` |

`bisect` names the first piece of the graph that diverges, and `causes` why. The reference (`reference`) is the author's
code, its weights streamed in by ourselves; `operators` and `held` read the artifact back without the code that wrote
it.
"""

from truecast.proof.bisect import Divergence, bisect
from truecast.proof.causes import Cause
from truecast.proof.proving import prove
from truecast.proof.quality import measured_noise
from truecast.proof.reference import Reference
from truecast.proof.verifying import verify

__all__ = ["Cause", "Divergence", "Reference", "bisect", "measured_noise", "prove", "verify"]
