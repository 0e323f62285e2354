"""Measures generation: one living worker per contender, and rounds in which each takes the same turns, one at a time.

A machine's speed drifts while others use it; what is compared must therefore run at nearly the same moment. All models
are loaded first. Then, for every kind of turn, every contender takes one, and so on round after round, each round
beginning with another contender. Ratios are taken within a round.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contenders import CONTENDERS, Places
from exporting import last_line
from machine import busy_seconds, process_seconds
from memory import Memory, Watch, now

DECODED = 32
"""Tokens decoded per turn, beginning with a cache of 128."""
PATIENCE_SECONDS = 10
"""How long a worker may take to end when told to."""


@dataclass(frozen=True)
class TurnKind:
    """A turn that every contender takes in every round: the prompt's length, and how many tokens to choose how."""

    prompt: int
    new: int
    sampled: bool = False

    def speeds(self, turn: Mapping[str, float]) -> dict[str, float]:
        """What the times of such a turn say, in tokens per second, by measure."""
        if self.sampled:
            return {"decode, sampled": (self.new - 1) / turn["rest"]}
        prefill = {f"prefill of {self.prompt}": self.prompt / turn["first"]}
        return prefill | ({"decode": (self.new - 1) / turn["rest"]} if self.new > 1 else {})


KINDS = (TurnKind(128, 1 + DECODED), TurnKind(128, 1 + DECODED, sampled=True), TurnKind(512, 1))
MEASURES = ("decode", "decode, sampled", "prefill of 128", "prefill of 512")
LONGEST_TURN = max(kind.prompt + kind.new for kind in KINDS)
"""Tokens that the cache must hold."""


class WorkerError(Exception):
    """A worker ended, or never began; the message says what it last printed."""


@dataclass(frozen=True)
class Loaded:
    """What a worker said when its model was loaded, and the memory that took."""

    versions: dict[str, str]
    seconds: float
    peak: Memory
    resident: Memory


class Worker:
    """One contender's process, loaded and waiting."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Starts the process and waits until its model is loaded."""
        self.log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, env=dict(environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        with Watch(self.process.pid) as watch:
            said = self._answer()
        self.loaded = Loaded(said["ready"], said["load"], watch.peak, now([self.process.pid]))

    def turn(self, kind: TurnKind, seed: int) -> dict[str, float]:
        """Has the worker take one turn; returns its times in seconds: `first`, `rest`, `cpu`."""
        order = {"prompt": kind.prompt, "new": kind.new, "sampled": kind.sampled, "seed": seed}
        self._tell(order)
        answer: dict[str, float] = self._answer()
        return answer

    def stop(self) -> None:
        """Ends the process."""
        try:
            self._tell({"stop": True})
            self.process.wait(PATIENCE_SECONDS)
        except (WorkerError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()

    def _tell(self, order: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise WorkerError(last_line(self.log)) from error

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise WorkerError(f"it ended with status {self.process.returncode}: {last_line(self.log)}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@dataclass
class Generation:
    """Everything measured: times by contender and round, memory, and who is missing and why.

    `foreign` is the share of the processors' time, during the rounds, that went to neither worker of the benchmark.
    """

    turns: dict[str, list[list[dict[str, float]]]] = field(default_factory=dict)
    loaded: dict[str, Loaded] = field(default_factory=dict)
    generating: dict[str, Memory] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    foreign: float = 0.0

    def speeds(self, name: str, measure: str) -> list[float]:
        """Tokens per second of one contender in one measure, round by round."""
        rounds = self.turns.get(name, [])
        found = (kind.speeds(turn) for turns in rounds for kind, turn in zip(KINDS, turns, strict=True))
        return [speeds[measure] for speeds in found if measure in speeds]

    def cores(self, name: str) -> float:
        """How many processors a contender kept busy on average during its turns."""
        turns = [turn for turns in self.turns.get(name, []) for turn in turns]
        return sum(turn["cpu"] for turn in turns) / sum(turn["first"] + turn["rest"] for turn in turns)


def run_rounds(
    places: Places, names: list[str], rounds: int, environment: Mapping[str, str], cpus: list[int]
) -> Generation:
    """Loads every contender among `names`, warms it up while watching its memory, then takes the rounds."""
    found = Generation()
    workers: dict[str, Worker] = {}
    try:
        for name in names:
            print(f"loading {CONTENDERS[name].title}", flush=True)
            _load(places, name, environment, workers, found)
        _timed_rounds(workers, rounds, cpus, found)
    finally:
        for worker in workers.values():
            worker.stop()
    return found


def _load(
    places: Places, name: str, environment: Mapping[str, str], workers: dict[str, Worker], found: Generation
) -> None:
    """Starts one worker and has it take each turn once, untimed; its memory is measured here."""
    command = CONTENDERS[name].worker_command(places)
    if not Path(command[0]).exists():
        found.missing[name] = f"{command[0]} does not exist: make the environments with bench/environments.py"
        return
    try:
        worker = workers[name] = Worker(command, environment, places.folder / f"worker-{name}.log")
        with Watch(worker.process.pid) as watch:
            for kind in KINDS:
                worker.turn(kind, seed=0)
    except WorkerError as error:
        workers.pop(name, None)
        found.missing[name] = str(error)
        return
    found.loaded[name], found.generating[name] = worker.loaded, watch.peak


def _timed_rounds(workers: dict[str, Worker], rounds: int, cpus: list[int], found: Generation) -> None:
    """Takes the rounds, and notes how much of the processors' time went elsewhere."""
    began, pids = busy_seconds(cpus), [worker.process.pid for worker in workers.values()]
    used = _used(pids)
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", flush=True)
        names = list(workers)
        shift = number % max(1, len(names))
        _round(workers, names[shift:] + names[:shift], number, found)
    busy = busy_seconds(cpus) - began
    found.foreign = max(0.0, 1 - (_used(pids) - used) / busy) if busy else 0.0


def _round(workers: dict[str, Worker], order: list[str], number: int, found: Generation) -> None:
    """Takes one round; a contender whose worker ends is out, with everything it did so far, and is named as missing."""
    times: dict[str, list[dict[str, float]]] = {name: [] for name in order}
    for index, kind in enumerate(KINDS):
        for name in [name for name in order if name in workers]:
            try:
                times[name].append(workers[name].turn(kind, seed=1 + number * len(KINDS) + index))
            except WorkerError as error:
                workers.pop(name)
                found.turns.pop(name, None)
                found.missing[name] = str(error)
    for name in workers:
        found.turns.setdefault(name, []).append(times[name])


def _used(pids: Sequence[int]) -> float:
    """Processor time that the workers have used so far; one that has ended counts as nothing."""
    return sum(process_seconds(pid) for pid in pids if Path(f"/proc/{pid}").exists())
