"""STUDY: variants of one model, measured the same way side by side, and what follows from the numbers.

Data flow: PLAN.toml → `plan` → `variants` (every combination, named by what differs) and `data` (token rows and labels)
→ `running` gives each variant to processes of its own (`worker`), here or on a Ray cluster (`clusters`) → a `Row` each,
written at once, so that an interrupted study goes on → `verdict` → report.json, report.md, report.html.

A variant is prepared in one process (exported, proven, diagnosed) and measured in another, which holds nothing but what
serving the model needs. PyTorch in float32 is always the first variant; all others are compared with what it computed.
"""

from truecast.study.plan import Plan, read_plan
from truecast.study.results import Report, Row, State
from truecast.study.running import run_study

__all__ = ["Plan", "Report", "Row", "State", "read_plan", "run_study"]
