"""Runs a study: which variants are still to do, who does them, and what their rows say together.

Data flow: plan → variants → rows kept from before → the reference → all others, by `local` or `clusters` → the
reference again (how far the machine drifted) → verdict → report files. Every row is on disk before the next starts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from truecast.errors import InputError, TruecastError
from truecast.publishing import require_apart
from truecast.study.data import read_examples
from truecast.study.fingerprints import fingerprint, row_key
from truecast.study.local import Task, Watch, complete, run_local
from truecast.study.plan import Plan
from truecast.study.process import WORKER
from truecast.study.reports import write_reports
from truecast.study.results import Report, Row, State, speed_ratio
from truecast.study.storing import Store
from truecast.study.variants import REFERENCE, Variant, expand
from truecast.study.verdict import judge

AGAIN = "torch fp32 again"


class StudyInterruptedError(TruecastError):
    """Ctrl-C; the rows so far are kept."""

    exit_status = 130


def run_study(
    plan: Plan,
    out: Path | str,
    jobs: int = 1,
    cluster: str | None = None,
    watch: Watch | None = None,
    again: bool = False,
    command: tuple[str, ...] = WORKER,
) -> Report:
    """Runs what is not done yet, and writes the reports into `out`.

    Args:
        plan: as `read_plan` gives it.
        out: the study's folder; rows in it that are still true are kept.
        jobs: variants exported at a time; they are measured one by one, since others would disturb the clock.
        cluster: `ray` or `ray://HOST:PORT` to run the variants there.
        watch: told of every change.
        again: whether to measure what is measured already; exports are kept.
        command: the program of the workers.

    Raises:
        InputError: the plan, the rows or the model cannot be used, or `out` is something else.
        TruecastError: PyTorch's own float32 run did not work, so nothing can be compared; or Ctrl-C.
    """
    if jobs < 1:
        raise InputError(f"--jobs is {jobs}; give 1 or more.")
    require_apart(Path(out), plan.paths, "the study's own folder")
    variants = expand(plan)
    examples = read_examples(plan.data, plan.model.source)
    if cluster is not None:
        from truecast.study.clusters import require_cluster

        require_cluster(cluster)
    store, told = Store(Path(out)), watch or (lambda name, event, row: None)
    common = fingerprint(plan)
    tasks = [Task(plan, variant, store.out, row_key(common, variant), command=command) for variant in variants]
    del examples
    rows: dict[str, Row] = {}
    try:
        for task in tasks:
            if not again and (row := store.kept(task.variant, task.key)) is not None:
                rows[task.variant.name] = row
                told(task.variant.name, "kept", row)
            else:
                told(task.variant.name, "waiting", None)
        _reference(tasks[0], store, rows, told, cluster)
        todo = [task for task in tasks[1:] if task.variant.name not in rows]
        for row in _performed(todo, jobs, cluster, told):
            store.keep(row)
            rows[row.variant.name] = row
            told(row.variant.name, "done", row)
        drift = _drift(tasks[0], store, rows[REFERENCE], bool(todo), cluster)
    except KeyboardInterrupt:
        raise StudyInterruptedError(
            f"Interrupted; {len(rows)} of {len(tasks)} variants are done, and the same command goes on from there."
        ) from None
    ordered = tuple(rows[task.variant.name] for task in tasks)
    verdict = judge(ordered, plan.accept, drift)
    plain = plan.model_dump(mode="json")
    report = shown(Report(name=plan.name, plan=plain, rows=ordered, drift=drift, verdict=verdict))
    write_reports(report, store.out)
    return report


def shown(report: Report) -> Report:
    """The report with paths below the working directory told from there."""
    here = json.dumps(f"{Path.cwd()}{os.sep}")[1:-1]
    return Report.model_validate_json(report.model_dump_json().replace(here, ""))


def _reference(task: Task, store: Store, rows: dict[str, Row], told: Watch, cluster: str | None) -> None:
    """Measures PyTorch in float32 first; everything else is compared with it."""
    if REFERENCE in rows and rows[REFERENCE].measured and store.reference.is_file():
        return
    for row in _performed([task], 1, cluster, told):
        if not row.measured:
            raise InputError(f"{task.plan.model.source} cannot be studied: in PyTorch, {row.reason}")
        store.keep(row)
        rows[REFERENCE] = row
        told(REFERENCE, "done", row)


def _performed(tasks: Sequence[Task], jobs: int, cluster: str | None, told: Watch) -> Generator[Row]:
    """The rows of all tasks as they are finished; what still runs is ended when the caller stops."""
    if not tasks:
        return
    if cluster is None:
        rows = run_local(tasks, jobs, told)
    else:
        from truecast.study.clusters import run_on_ray

        rows = run_on_ray(tasks, cluster, told)
    with closing(rows):
        yield from rows


def _drift(task: Task, store: Store, reference: Row, fresh: bool, cluster: str | None) -> float | None:
    """How many times slower the reference is now than at the start; None where it cannot be told.

    Nothing measured now means that the last answer stays. Nodes of a cluster differ, so there it is not asked.
    """
    again = Variant(name=AGAIN, kind="torch", settings=task.variant.settings)
    if cluster is not None:
        return None
    row = None if fresh else store.kept(again, task.key)
    if row is None:
        row = complete(replace(task, variant=again, only_latency=True))
        store.keep(row)
    ratio = speed_ratio(row, reference) if row.state is State.MEASURED else None
    return None if ratio is None else 1 / ratio
