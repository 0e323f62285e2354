"""A worker for tests that measures nothing: `python stand_in.py JOB ANSWER`.

`behaviour.json` beside the study's folder says what it does by "VARIANT STEP"; every start is a line of `calls.txt`.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zipfile
from pathlib import Path

MILLISECONDS = {"fp32": 10.0, "bf16": 9.0, "int8": 5.0}


def main(job_file: str, answer_file: str) -> None:
    job = json.loads(Path(job_file).read_text())
    name, step = job["variant"]["name"], job["step"]
    place = Path(job["reference"]).parents[1]
    with (place / "calls.txt").open("a") as calls:
        calls.write(f"{name} {step} {os.getpid()}\n")
    file = place / "behaviour.json"
    behaviour = json.loads(file.read_text()).get(f"{name} {step}", "") if file.is_file() else ""
    behave(behaviour, place)
    answer = {"proof": "proven: 3 of 3 checks"} if step == "prepare" else measured(job)
    if behaviour == "blame":
        answer = {"state": "failed", "reason": "there is no such output"}
    Path(answer_file).write_text(json.dumps(answer))


def behave(behaviour: str, place: Path) -> None:
    if behaviour == "crash":
        print("half a line of the library\nlast words", flush=True)
        os.abort()
    elif behaviour == "quit":
        sys.exit(3)
    elif behaviour == "nothing":
        sys.exit(0)
    elif behaviour == "hang":
        time.sleep(600)
    elif behaviour == "grow":
        held = []
        for _ in range(600):
            held.append(b"1" * (10 << 20))
            time.sleep(0.01)
    elif behaviour.startswith("wait"):
        deadline = time.monotonic() + 60
        while not (place / behaviour.removeprefix("wait ")).exists() and time.monotonic() < deadline:
            time.sleep(0.02)


def measured(job: dict[str, object]) -> dict[str, object]:
    name = str(job["variant"]["name"])  # type: ignore[index]
    if name == "torch fp32":
        with zipfile.ZipFile(str(job["reference"]), "w"):
            pass
    p50 = next((value for word, value in MILLISECONDS.items() if word in name), 20.0)
    cell = {"threads": 1, "batch": 1, "length": 8, "p50": p50, "p90": p50, "p99": p50, "mean": p50, "calls": 5}
    head = {"output": "logits", "rows": 4, "accuracy": 0.75, "macro_f1": 0.75, "agreement": 1.0}
    likeness = {"output": "logits", "rows": 4, "cosine": 0.999, "lowest_cosine": 0.998}
    memory = {"disk": 10**6, "bare_anonymous": 10**6, "anonymous": 2 * 10**6, "file_backed": 10**6, "peak": 4 * 10**6}
    footprint = {**memory, "load_seconds": 0.1, "first_call_seconds": 0.1}
    return {
        "state": "measured",
        "cells": [cell],
        "heads": [head],
        "likenesses": [likeness],
        "footprint": footprint,
        "environment": {"processor": "stand-in"},
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
