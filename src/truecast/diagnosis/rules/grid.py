"""TC306 to TC308: what runs at several sizes showed of axes that are declared free."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from truecast.diagnosis.evidence import Evidence
from truecast.diagnosis.inference import Dim
from truecast.diagnosis.model import Seen, seen
from truecast.diagnosis.rules.rule import ERROR, WARNING, Rule
from truecast.diagnosis.rules.shapes import BATCH_NAME, declared_dims, real_inputs
from truecast.diagnosis.trials import Trial


def ran(evidence: Evidence) -> tuple[Trial, ...]:
    """The runs behind the first that worked, and it; none without `--run`."""
    return () if evidence.observed is None else evidence.observed.trials


def grid_fails(evidence: Evidence) -> Seen | None:
    """Seen in a run: sizes other than those of a run that worked fail although the axes are declared free."""
    failed = [trial for trial in ran(evidence) if trial.error is not None and not trial.padded]
    if not failed:
        return None
    base = ran(evidence)[0]
    names = [f"{trial}: {trial.error}" for trial in failed]
    if any(t.sizes.batch != base.sizes.batch or t.sizes.length > base.sizes.length for t in failed):
        return seen(names, f"{base} runs")
    return seen(names, f"{base} runs", severity=WARNING, fix=DECLARE_SIZES)


DECLARE_SIZES = "Declare the sizes that the model takes, or bring inputs to one of them (scaling, padding)."


def misdeclared(evidence: Evidence) -> Seen | None:
    """Seen in a run: outputs of other shapes than the graph declares, or whose rank changes."""
    declared = {value.name or "": declared_dims(value) for value in evidence.graph.outputs}
    faults, grave = dict[str, None](), False
    ranks: dict[str, set[int]] = defaultdict(set)
    for trial in ran(evidence):
        for name, got in trial.outputs.items():
            ranks[name].add(len(got))
            if fault := _contradiction(name, declared.get(name, ()), got, trial):
                faults[fault] = None
                grave = grave or _loses_rows(declared[name], got, trial)
    changing = [
        f"{name} has {' or '.join(map(str, sorted(found)))} axes" for name, found in ranks.items() if len(found) > 1
    ]
    severity = ERROR if grave or changing else None
    return seen((*changing, *faults), severity=severity)


def _contradiction(name: str, declared: tuple[Dim, ...], got: tuple[int, ...], trial: Trial) -> str | None:
    if not declared or (fits(declared, got, {}) and fits(declared, got, trial.named)):
        return None
    if not fits(declared, got, {}):
        return f"{name} is declared {list(declared)} and is {list(got)}"
    wrong = next(
        (dim, size) for dim, size in zip(declared, got, strict=True) if trial.named.get(str(dim), size) != size
    )
    return f"{wrong[0]} of {name} was fed as {trial.named[str(wrong[0])]} and is {wrong[1]}"


def fits(declared: tuple[Dim, ...], got: tuple[int, ...], named: Mapping[str, int]) -> bool:
    """Whether a shape is as declared, with names that stand for these sizes."""
    wanted = [dim if isinstance(dim, int) else named.get(str(dim)) for dim in declared]
    return len(wanted) == len(got) and all(w is None or w == g for w, g in zip(wanted, got, strict=True))


def _loses_rows(declared: tuple[Dim, ...], got: tuple[int, ...], trial: Trial) -> bool:
    """Whether the axis that comes back with another size is the first, and named as that of the inputs."""
    return bool(declared and got) and trial.named.get(str(declared[0]), got[0]) != got[0]


def rows_mixed(evidence: Evidence) -> Seen | None:
    """Seen in a run: more rows go in and one comes out, longer than before."""
    worked = [trial for trial in ran(evidence) if trial.error is None and not trial.padded]
    if not worked or not _has_batch(evidence):
        return None
    base = worked[0]
    return seen(
        dict.fromkeys(
            f"{name} {list(base.outputs[name])} for {base.sizes.batch} rows, {list(got)} for {other.sizes.batch}"
            for other in worked[1:]
            if replace(other.sizes, batch=base.sizes.batch) == base.sizes and other.sizes != base.sizes
            for name, got in other.outputs.items()
            if _grows_elsewhere(base.outputs.get(name, ()), got, base.sizes.batch, other.sizes.batch)
        )
    )


def _has_batch(evidence: Evidence) -> bool:
    """Whether the first free axis of the inputs holds rows: by its name, or since ids or several axes follow it."""
    for value in real_inputs(evidence):
        dims = declared_dims(value)
        if dims and not isinstance(dims[0], int):
            whole = value.dtype is not None and value.dtype.is_integer()
            if BATCH_NAME.fullmatch(dims[0] or "") or len(dims) > 2 or (whole and len(dims) == 2):
                return True
    return False


def _grows_elsewhere(first: tuple[int, ...], second: tuple[int, ...], rows: int, others: int) -> bool:
    """Whether the first axis stays one, and another, which is not the rows themselves, grows as the rows do."""
    if len(first) != len(second) or first[:1] != (1,) or second[:1] != (1,):
        return False
    grown = [size for size, other in zip(first, second, strict=True) if size != other]
    return bool(grown) and all(
        size * others == other * rows and size != rows
        for size, other in zip(first, second, strict=True)
        if size != other
    )


RULES = (
    Rule(
        "TC306",
        ERROR,
        "Dynamic axes that fail at other sizes",
        "The axes are declared free, and runs at these sizes fail.",
        "Export again with named, tied axes, and run a grid of sizes against the source.",
        grid_fails,
    ),
    Rule(
        "TC307",
        WARNING,
        "Outputs have other shapes than declared",
        "Consumers that allocate by the declaration fail.",
        "Declare the shapes that the graph returns.",
        misdeclared,
    ),
    Rule(
        "TC308",
        ERROR,
        "Rows are laid end to end",
        "One row comes back for all, made of all: what one text says changes the answers to the others.",
        "Make sizes from the input's shape in the model, not from Python numbers, and export again.",
        rows_mixed,
    ),
)
