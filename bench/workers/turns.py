"""What every worker of the benchmark shares: it loads one contender, then takes turns when told to.

A worker is a process in the contender's own Python environment. It reads one JSON object per line from standard input
and answers with one per line on standard output:

    {"prompt": 128, "new": 33, "sampled": false, "seed": 7}   →   {"first": 0.61, "rest": 0.44, "cpu": 2.06, …}
    {"stop": true}                                             →   (ends)

The first line a worker writes is {"ready": …}. Only the standard library is used here, as the environments differ.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

THREADS = 2
"""Threads that every contender computes with."""
CAPACITY = 1024
"""Tokens that a contender's cache must hold; the longest turn takes 513."""


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen: the likeliest one (`greedy`), or drawn after the three common filters."""

    greedy: bool
    seed: int
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95


class Contender(Protocol):
    """One loaded model."""

    @property
    def versions(self) -> Mapping[str, str]:
        """Of the libraries that do the work, and the processor features they report."""
        ...

    def generate(self, prompt: list[int], new: int, sampling: Sampling) -> Iterator[int]:
        """Yields `new` tokens that follow `prompt`, each as soon as it is known; nothing is kept between calls."""
        ...


@dataclass(frozen=True)
class Turn:
    """The times of one turn, in seconds: to the first token, for the other `new - 1`, and of the processor in total."""

    prompt: int
    new: int
    first: float
    rest: float
    cpu: float


def serve(load: Callable[[Path, int], Contender]) -> None:
    """Runs the worker: `load(model, vocabulary size)` once, with the command line's arguments, then the turns."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # so that a library that prints does not spoil the answers
    vocab = int(sys.argv[2])
    start = time.perf_counter()
    contender = load(Path(sys.argv[1]), vocab)
    _answer(channel, {"ready": dict(contender.versions), "load": time.perf_counter() - start})
    for line in sys.stdin:
        order = json.loads(line)
        if order.get("stop"):
            return
        _answer(channel, asdict(_take(contender, vocab, **order)))


def _answer(channel: Any, content: dict[str, Any]) -> None:
    channel.write(json.dumps(content) + "\n")


def _take(contender: Contender, vocab: int, prompt: int, new: int, sampled: bool, seed: int) -> Turn:
    """Takes one turn with a prompt of random tokens, which depend on `seed` only."""
    tokens = random.Random(seed).choices(range(vocab // 2), k=prompt)
    cpu, start = _cpu_seconds(), time.perf_counter()
    generated = contender.generate(tokens, new, Sampling(not sampled, seed))
    seen = [(token, time.perf_counter()) for token in generated]
    if len(seen) != new or not all(0 <= token < vocab for token, _ in seen):
        raise SystemExit(f"asked for {new} tokens of a vocabulary of {vocab}, got {[token for token, _ in seen]}")
    first, last = seen[0][1], seen[-1][1]
    return Turn(prompt, new, first - start, last - first, _cpu_seconds() - cpu)


def _cpu_seconds() -> float:
    """Processor time of this process, all threads, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
