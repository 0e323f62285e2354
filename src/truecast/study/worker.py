"""One step of one variant in a process of its own: `python -m truecast.study.worker JOB.json ANSWER.json`.

`prepare` exports and proves a variant and diagnoses its graph; `measure` loads it and measures. Two processes, because
what an export leaves in memory must not count as the model's. A variant of ONNX Runtime is measured without PyTorch.

The answer is a JSON object with the fields of `Row` that the step knows; an error is an answer, too. What ends the
process without an answer (a crash, a limit) is the parent's to tell.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from truecast.errors import ProofError, TruecastError
from truecast.publishing import remove_artifact
from truecast.study.plan import Plan
from truecast.study.results import Cell, Footprint, Noted, State
from truecast.study.variants import REFERENCE, Variant

Step = Literal["prepare", "measure"]
Answer = dict[str, Any]
PR_SET_PDEATHSIG = 1
"""Linux's prctl: the signal that a process gets when its parent ends."""
KEPT_AT = " It is kept in "
"""What follows it in a proof's message is not so here: the study keeps no rejected artifacts."""
LONGEST_REASON = 300
"""Characters of a library's message that fit a table; the log has all of it."""
DEVICES = ("cuda", "tensorrt")


class Job(BaseModel):
    """What a worker is told. `folder` is the variant's own; `reference` holds what PyTorch computed in float32.

    `only_latency` leaves everything out but the cells.
    """

    model_config = ConfigDict(frozen=True)

    step: Step
    plan: Plan
    variant: Variant
    folder: Path
    reference: Path
    only_latency: bool = False

    @property
    def artifact(self) -> Path:
        """Where the export goes."""
        return self.folder / "artifact"


def main(job_file: str, answer_file: str) -> int:
    """Does the job of the first file and writes the second; returns 0 also when the answer is an error."""
    die_with_parent()
    try:
        job = Job.model_validate_json(Path(job_file).read_text(encoding="utf-8"))
        answer = {"prepare": prepare, "measure": measure}[job.step](job)
    except ProofError as error:
        if error.kept is not None:
            remove_artifact(error.kept)
        answer = failure(str(error).split(KEPT_AT)[0])
    except TruecastError as error:
        answer = failure(str(error))
    except MemoryError:
        answer = failure("there was not enough memory")
    except Exception as error:  # whatever a library or the author's code raises becomes the variant's reason
        traceback.print_exc()
        answer = failure(f"{type(error).__name__}: {shortened(error)}")
    partial = Path(f"{answer_file}.partial")
    partial.write_text(json.dumps(answer), encoding="utf-8")
    partial.replace(answer_file)
    return 0


def failure(reason: str) -> Answer:
    """The answer of a step that did not work."""
    return {"state": State.FAILED, "reason": reason}


def shortened(error: BaseException) -> str:
    """The first line of what an error says, cut to a length that fits a table."""
    words = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return words if len(words) <= LONGEST_REASON else f"{words[:LONGEST_REASON]}…"


def die_with_parent() -> None:
    """Ends this process when its parent ends, so that a killed study or node leaves none behind (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def prepare(job: Job) -> Answer:
    """Exports the variant into its folder where it is one of truecast's, and diagnoses its graph."""
    variant = job.variant
    if variant.kind == "torch":
        return {}
    answer: Answer = {}
    place = Path(variant.settings["file"]) if variant.kind == "file" else job.artifact
    if variant.kind == "onnx":
        answer = exported(job)
    from truecast.diagnosis import diagnose

    found = diagnose(place, variant.provider).findings
    names = Noted.model_fields
    noted = [{name: value for name, value in asdict(one).items() if name in names} for one in found]
    return answer | {"findings": noted}


def exported(job: Job) -> Answer:
    """Exports and proves; a proof that does not hold raises ProofError."""
    import truecast

    settings = {name: value for name, value in job.variant.settings.items() if name != "file"}
    model = job.plan.model
    given = {"trust_remote_code": model.trust_remote_code, "task": model.task, "module": model.module}
    more: dict[str, Any] = settings | {name: value for name, value in given.items() if value is not None}
    artifact = truecast.export(job.plan.model.source, job.artifact, force=True, **more)
    certificate = artifact.manifest.certificate
    checks = certificate.checks
    verdict = f"{certificate.status}: {sum(check.passed for check in checks)} of {len(checks)} checks"
    return {"proof": verdict if checks else str(certificate.status), "notes": list(artifact.manifest.notices)}


def measure(job: Job) -> Answer:
    """Loads the variant and measures it: latency, memory, then its outputs over all rows."""
    from truecast.measure.environment import environment
    from truecast.measure.memory import device_memory, folder_bytes, own_memory
    from truecast.runtime.processors import default_threads
    from truecast.study.data import read_examples
    from truecast.study.feeds import exact, padding_id, tokenize

    plan, source = job.plan, job.plan.model.source
    examples = read_examples(plan.data, source)
    rows = tokenize(examples, plan.data, source)
    import_libraries(job)
    on_device = job.variant.provider in DEVICES
    device_before = device_memory() if on_device else None
    gc.collect()
    bare = own_memory()

    threads = plan.measure.threads or (default_threads(),)
    start = time.perf_counter()
    model = opened(job, threads[0])
    load_seconds = time.perf_counter() - start
    first = model.prepare(exact(rows, plan.measure.batch[0], plan.measure.length[0]))
    start = time.perf_counter()
    first()
    first_seconds = time.perf_counter() - start
    cells = list(timed(model, rows, plan, threads[0]))
    gc.collect()
    held, device = own_memory(), device_memory() if on_device else None
    answer: Answer = {}
    if not job.only_latency:
        footprint = Footprint(
            disk=folder_bytes(disk_place(job)),
            load_seconds=load_seconds,
            first_call_seconds=first_seconds,
            bare_anonymous=bare.anonymous,
            bare_file_backed=bare.file_backed,
            anonymous=held.anonymous,
            file_backed=held.file_backed,
            peak=held.peak,
            device=None if device is None or device_before is None else device - device_before,
        )
        answer |= {"footprint": footprint.model_dump()} | scored(job, model, rows, examples.labels, padding_id(source))
    for number in threads[1:]:
        model = opened(job, number)
        cells += timed(model, rows, plan, number)
    figures = {"cells": [cell.model_dump() for cell in cells], "environment": environment()}
    return answer | figures | {"state": State.MEASURED}


def opened(job: Job, threads: int) -> Any:
    """The variant, loaded."""
    variant = job.variant
    if variant.kind == "torch":
        from truecast.study.baselines import open_baseline

        return open_baseline(job.plan.model, variant.settings["baseline"], variant.provider, threads)
    from truecast.study.opening import open_graph

    place = Path(variant.settings["file"]) if variant.kind == "file" else job.artifact
    return open_graph(place, variant.provider, threads)


def import_libraries(job: Job) -> None:
    """Imports what the variant runs on, so that a library is not counted as the model."""
    if job.variant.kind == "torch":
        import truecast.study.baselines
    else:
        import truecast.study.opening  # noqa: F401


def timed(model: Any, rows: Any, plan: Plan, threads: int) -> Iterable[Cell]:
    """The latency of every cell of the plan."""
    from truecast.measure.timing import time_calls
    from truecast.study.feeds import exact

    wanted = plan.measure
    for batch in wanted.batch:
        for length in wanted.length:
            call = model.prepare(exact(rows, batch, length))
            timing = time_calls(call, wanted.warmup, wanted.repeats, wanted.cell_seconds)
            figures = {name: value for name, value in asdict(timing).items() if name in Cell.model_fields}
            yield Cell(threads=threads, batch=batch, length=length, **figures)


def scored(job: Job, model: Any, rows: Any, labels: Any, padding: int) -> Answer:
    """The outputs over all rows against the labels and the reference; the reference's own are kept in its file."""
    from truecast.study import evaluating

    found = evaluating.collect(model, rows, job.plan.data.batch, padding)
    if job.variant.name == REFERENCE:
        evaluating.save(found, job.reference)
    reference = evaluating.load(job.reference)
    heads = evaluating.heads(found, labels, reference)
    likenesses, missing = evaluating.likenesses(found, reference)
    notes = [f"It has no output {name}, which PyTorch gives." for name in missing]
    return {
        "heads": [one.model_dump() for one in heads],
        "likenesses": [one.model_dump() for one in likenesses],
        "notes": notes,
    }


def disk_place(job: Job) -> Path:
    """What must be on disk to serve the variant."""
    if job.variant.kind == "torch":
        return job.plan.model.source
    return Path(job.variant.settings["file"]) if job.variant.kind == "file" else job.artifact


if __name__ == "__main__":
    # Libraries that end the process with threads of theirs alive must not lose the answer, nor hang behind it.
    status = main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
