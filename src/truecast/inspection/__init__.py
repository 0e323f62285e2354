"""INSPECT: what a checkpoint is, how it is stored, what it can become, and what that will cost.

Data flow: path → `Checkpoint` (headers only) → what is stored alike (`storage`) and what each choice costs (`costs`) →
`Inspection` (`model`) → a table (`tables`) or JSON.

Nothing is loaded and nothing is executed, so the answer takes well under three seconds for a checkpoint of any size.
"""

from truecast.inspection.inspecting import inspect, inspect_checkpoint, recommend, recommended_precision
from truecast.inspection.model import Choice, Inspection, Recommendation, StorageGroup
from truecast.inspection.tables import render
from truecast.weights.names import PRECISIONS

__all__ = [
    "PRECISIONS",
    "Choice",
    "Inspection",
    "Recommendation",
    "StorageGroup",
    "inspect",
    "inspect_checkpoint",
    "recommend",
    "recommended_precision",
    "render",
]
