"""DIAGNOSE: what goes wrong in silence with an ONNX file, whoever made it, on the provider it is meant for.

Data flow: path → `Evidence` (the graph without its weights, the runtime's schemas and kernel tables, settings beside
the file; with `run`, what a real session did) → every `Rule` of the registry looks at it → `Diagnosis`, a list of
`Finding`s with stable codes → a table (`tables`) or JSON.

A rule is one small pure function, and a family of rules is one file in `rules`. External data is looked at only inside
the model's own folder.
"""

from truecast.diagnosis.diagnosing import diagnose
from truecast.diagnosis.fixing import Repair, repair
from truecast.diagnosis.model import Diagnosis, Finding, Severity
from truecast.diagnosis.rules import RULES
from truecast.diagnosis.tables import render

__all__ = ["RULES", "Diagnosis", "Finding", "Repair", "Severity", "diagnose", "render", "repair"]
