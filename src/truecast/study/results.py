"""What a study finds out: a row per variant, and the report over all rows. All of it is JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, computed_field

from truecast.study.variants import Variant

SCHEMA_VERSION = 1
Z_95 = 1.959964
"""The normal distribution's quantile of 97.5 %."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="null")


class State(StrEnum):
    """How a variant ended."""

    MEASURED = "measured"
    FAILED = "failed"


class Cell(_Record):
    """Latency at one batch size and length in tokens: wall-clock milliseconds of a whole batch, over `calls` calls."""

    threads: int
    batch: int
    length: int
    p50: float
    p90: float
    p99: float
    mean: float
    calls: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def p50_per_sample(self) -> float:
        """Milliseconds per row at the median."""
        return self.p50 / self.batch

    @computed_field  # type: ignore[prop-decorator]
    @property
    def p90_per_sample(self) -> float:
        """Milliseconds per row; one call in ten takes longer."""
        return self.p90 / self.batch

    @computed_field  # type: ignore[prop-decorator]
    @property
    def p99_per_sample(self) -> float:
        """Milliseconds per row; one call in a hundred takes longer."""
        return self.p99 / self.batch

    @computed_field  # type: ignore[prop-decorator]
    @property
    def samples_per_second(self) -> float:
        """Rows per second, one call after the other."""
        return 1000 * self.batch / self.mean

    @property
    def place(self) -> tuple[int, int, int]:
        """Which cell it is: threads, batch, length."""
        return self.threads, self.batch, self.length


class Head(_Record):
    """One labelled output against its labels, and the share of rows where its class is float32's.

    For scores in place of classes, only `spearman` is there: the rank correlation with the labels.
    """

    output: str
    rows: int
    accuracy: float | None = None
    macro_f1: float | None = None
    agreement: float | None = None
    spearman: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the accuracy over endlessly many rows of this kind lies, at 95 % (Wilson's score interval, 1927)."""
        if self.accuracy is None or not self.rows:
            return None
        share, total = self.accuracy, self.rows
        centre = share + Z_95**2 / (2 * total)
        reach = Z_95 * math.sqrt(share * (1 - share) / total + Z_95**2 / (4 * total**2))
        scale = 1 + Z_95**2 / total
        return (centre - reach) / scale, (centre + reach) / scale


class Likeness(_Record):
    """One output against PyTorch's in float32: the cosine of each row (mean and lowest; None: NaN or Inf among them).

    `spearman`: rank correlation of the rows' similarities among each other; None for fewer than three rows.
    """

    output: str
    rows: int
    cosine: float | None
    lowest_cosine: float | None
    spearman: float | None = None


class Footprint(_Record):
    """What a loaded model takes. Bytes of memory are the process's after the latencies were measured.

    `bare_anonymous` and `bare_file_backed` are what the process held with its libraries and no model. `load_seconds`
    opens the model; `first_call_seconds` is the first call behind that. `device` is None where no device is used or
    none can be asked.
    """

    disk: int
    load_seconds: float
    first_call_seconds: float
    bare_anonymous: int
    bare_file_backed: int = 0
    anonymous: int
    file_backed: int
    peak: int
    device: int | None = None

    @property
    def process(self) -> int:
        """Bytes of the whole process."""
        return self.anonymous + self.file_backed

    @property
    def model(self) -> int:
        """Bytes that came with the model: the process less what it held before."""
        return max(0, self.process - self.bare_anonymous - self.bare_file_backed)


class Noted(_Record):
    """A finding of the diagnosis; `nodes` are the first few that it is about."""

    code: str
    severity: str
    title: str
    count: int
    detail: str
    cost: str
    fix: str
    nodes: tuple[str, ...] = ()


class Row(_Record):
    """One variant's result; a failed one has a `reason` and may have parts of the rest.

    `proof` is the certificate's verdict, for exported variants. `key` is of all that the result depends on.
    """

    variant: Variant
    state: State
    key: str = ""
    reason: str = ""
    seconds: float = 0.0
    cells: tuple[Cell, ...] = ()
    heads: tuple[Head, ...] = ()
    likenesses: tuple[Likeness, ...] = ()
    footprint: Footprint | None = None
    findings: tuple[Noted, ...] = ()
    proof: str = ""
    notes: tuple[str, ...] = ()
    environment: dict[str, str] = Field(default_factory=dict)

    @property
    def measured(self) -> bool:
        """Whether the numbers are all there."""
        return self.state is State.MEASURED

    @property
    def lowest_cosine(self) -> float | None:
        """The lowest cosine of any output and row to float32; None where there is none, or it is no number."""
        found = [one.lowest_cosine for one in self.likenesses]
        known = [value for value in found if value is not None]
        return min(known) if known and len(known) == len(found) else None

    def cell(self, place: tuple[int, int, int]) -> Cell | None:
        """The cell at (threads, batch, length)."""
        return next((cell for cell in self.cells if cell.place == place), None)


class Verdict(_Record):
    """The conclusion: whether ONNX should be used, the variant to use, one sentence, and what supports it.

    `void`: the machine changed so much while it was measured that nothing is concluded, and `choice` is empty.
    """

    use_onnx: bool
    void: bool = False
    choice: str
    sentence: str
    reasons: tuple[str, ...] = ()


class Report(_Record):
    """A finished study. `drift` is how many times slower the reference ran when it was measured again at the end."""

    schema_version: int = SCHEMA_VERSION
    name: str
    plan: dict[str, Any]
    rows: tuple[Row, ...]
    drift: float | None
    verdict: Verdict

    @property
    def reference(self) -> Row:
        """PyTorch in float32."""
        return self.rows[0]


def speed_ratio(row: Row, reference: Row) -> float | None:
    """How many times faster a row is than the reference: the geometric mean over the cells that both have."""
    pairs = [(cell.p50, other.p50) for cell in row.cells if (other := reference.cell(cell.place)) is not None]
    return geometric_mean([theirs / own for own, theirs in pairs]) if pairs else None


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive numbers."""
    return math.exp(sum(math.log(value) for value in values) / len(values))
