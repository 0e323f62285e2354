"""Writing the graph and its weights: chunk by chunk, in bounded memory, the same bytes every time.

Data flow: bindings → a layout (every operand's place in model.onnx.data) → chunks of rows made on all cores and written
at their place → SHA-256 per weight from the finished file → model.onnx that refers to it.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir

from truecast.artifact import HASH_CHUNK_BYTES, WeightInfo
from truecast.checkpoint.model import Array
from truecast.errors import InputError
from truecast.publishing.space import require_space
from truecast.weights.binding import Alias, Binding, Operand

LARGE_BYTES = 1 << 20
LARGE_ALIGNMENT = 64 << 10
"""Tensors of a MiB and more start at a multiple of 64 KiB, Windows' granularity of memory maps."""
SMALL_ALIGNMENT = 64
CHUNK_WEIGHTS = 1 << 22
"""Source weights per chunk: 16 MiB as float32."""
MAX_THREADS = 8
ONE_PLACE = threading.Lock()

Progress = Callable[[int, int], None]
"""Called with weights done and weights in all."""


@dataclass(frozen=True)
class Placed:
    """An operand and its offset in the data file."""

    operand: Operand
    offset: int


def layout(bindings: Sequence[Binding], start: int = 0) -> tuple[list[list[Placed]], int]:
    """Places every operand behind `start` bytes; returns them per binding, and the size of the file in bytes."""
    position, places = start, []
    for binding in bindings:
        row = []
        for operand in binding.operands:
            alignment = LARGE_ALIGNMENT if operand.nbytes >= LARGE_BYTES else SMALL_ALIGNMENT
            position += -position % alignment
            row.append(Placed(operand, position))
            position += operand.nbytes
        places.append(row)
    return places, position


def write_weights(path: Path, bindings: Sequence[Binding], progress: Progress | None = None) -> list[WeightInfo]:
    """Writes all weights to `path`; raises InputError when the disk is full or a weight is damaged."""
    places, size = layout(bindings)
    require_space(path.parent, size)
    total = sum(binding.rows * binding.row_cost for binding in bindings)
    done = 0
    threads = _threads()
    with path.open("wb") as file, ThreadPoolExecutor(threads) as pool:
        file.truncate(size)
        jobs = _jobs(bindings, places, file.fileno())
        for cost in _run(pool, jobs, threads + 1):
            done += cost
            if progress:
                progress(done, total)
    return _accounts(path, bindings, places)


def append_weights(model: ir.Model, path: Path, bindings: Sequence[Binding]) -> list[WeightInfo]:
    """Writes a few small weights behind those in `path`, and makes the graph's initializers refer to them."""
    places, size = layout(bindings, path.stat().st_size if path.is_file() else 0)
    require_space(path.parent, size)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
    try:
        os.ftruncate(descriptor, size)
        for binding, row in zip(bindings, places, strict=True):
            _job(binding, row, 0, binding.rows, descriptor)()
    finally:
        os.close(descriptor)
    for place in (place for row in places for place in row):
        _refer(model, place.operand, path.name, place.offset, path.parent)
    return _accounts(path, bindings, places)


Job = Callable[[], int]


def _jobs(bindings: Sequence[Binding], places: Sequence[list[Placed]], descriptor: int) -> Iterator[Job]:
    for binding, row in zip(bindings, places, strict=True):
        step = max(1, CHUNK_WEIGHTS // max(1, binding.row_cost))
        for start in range(0, binding.rows, step):
            yield _job(binding, row, start, min(start + step, binding.rows), descriptor)


def _job(binding: Binding, places: list[Placed], start: int, stop: int, descriptor: int) -> Job:
    def run() -> int:
        for array, place in zip(binding.produce(start, stop), places, strict=True):
            row_bytes = place.operand.nbytes // binding.rows
            _write_at(descriptor, np.ascontiguousarray(array), place.offset + start * row_bytes)
        return (stop - start) * binding.row_cost

    return run


def _write_at(descriptor: int, array: Array, offset: int) -> None:
    view = memoryview(array.reshape(-1).view(np.uint8).data)
    while view:
        written = _write(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _write(descriptor: int, view: memoryview, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, view, offset)
    with ONE_PLACE:  # Windows has one place in a file for all threads
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, view)


def _run(pool: ThreadPoolExecutor, jobs: Iterator[Job], at_once: int) -> Iterator[int]:
    """Runs jobs with a bounded number under way, so that memory stays bounded too."""
    pending: set[Future[int]] = set()
    for job in jobs:
        pending.add(pool.submit(job))
        if len(pending) >= at_once:
            finished, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()
    for future in pending:
        yield future.result()


def _accounts(path: Path, bindings: Sequence[Binding], places: Sequence[list[Placed]]) -> list[WeightInfo]:
    """The manifest's entries; hashing takes as long as writing, so all cores take part."""

    def account(binding: Binding, row: list[Placed]) -> WeightInfo:
        with path.open("rb") as file:
            return WeightInfo(
                initializers=[place.operand.name for place in row],
                sources=list(binding.sources),
                packing=binding.packing,
                sha256=_digest(file, row),
                own=binding.own,
            )

    with ThreadPoolExecutor(_threads()) as pool:
        return list(pool.map(account, bindings, places))


def _threads() -> int:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_THREADS, allowed)


def link_weights(folder: Path, bindings: Sequence[Binding]) -> list[WeightInfo]:
    """Hard-links the files that hold `bindings` verbatim into `folder`; nothing is copied.

    Loaders refuse data outside a model's folder, and links that lead there; a hard link is in it. Raises InputError
    where the file system cannot link.
    """
    stored = [binding.verbatim for binding in bindings if binding.verbatim is not None]
    for path in sorted({tensor.location.path for tensor in stored}):
        try:
            os.link(path.resolve(), folder / path.name)
        except OSError as error:
            raise InputError(
                f"{path} cannot be linked into {folder} ({error.strerror}); "
                "leave --link-weights out, or choose a folder on the same disk."
            ) from error
    return [_linked_account(binding) for binding in bindings]


def _linked_account(binding: Binding) -> WeightInfo:
    assert binding.verbatim is not None
    digest, location = hashlib.sha256(), binding.verbatim.location
    with location.path.open("rb") as file:
        _update(digest, file, location.offset, location.length)
    return WeightInfo(
        initializers=[binding.operands[0].name],
        sources=list(binding.sources),
        packing=f"{binding.packing}, the checkpoint's own bytes",
        sha256=digest.hexdigest(),
    )


def attach_links(model: ir.Model, bindings: Sequence[Binding], folder: Path) -> None:
    """Makes every linked initializer refer to its bytes in the linked file."""
    for binding in bindings:
        assert binding.verbatim is not None
        location, operand = binding.verbatim.location, binding.operands[0]
        _refer(model, operand, location.path.name, location.offset, folder)


def _refer(model: ir.Model, operand: Operand, file: str, offset: int, folder: Path) -> None:
    model.graph.initializers[operand.name].const_value = ir.ExternalTensor(
        file,
        offset if operand.nbytes else 0,  # ONNX Runtime does not read nothing at the end of a file
        operand.nbytes,
        operand.dtype,
        shape=ir.Shape(operand.shape),
        name=operand.name,
        base_dir=folder,
    )


def _digest(file: BinaryIO, places: Sequence[Placed]) -> str:
    """SHA-256 over the bytes of some operands, read piece by piece: a map of the file would count as memory."""
    digest = hashlib.sha256()
    for place in places:
        _update(digest, file, place.offset, place.operand.nbytes)
    return digest.hexdigest()


def _update(digest: Any, file: BinaryIO, offset: int, length: int) -> None:
    file.seek(offset)
    while length:
        piece = file.read(min(length, HASH_CHUNK_BYTES))
        digest.update(piece)
        length -= len(piece)


def attach(
    model: ir.Model, bindings: Sequence[Binding], aliases: Sequence[Alias], data_name: str, folder: Path
) -> None:
    """Makes every bound initializer, and every alias of one, refer to its place in the data file."""
    placed = {place.operand.name: place for row in layout(bindings)[0] for place in row}
    named = [(place.operand, place) for place in placed.values()]
    named += [(Operand(alias.name, alias.dtype, alias.shape), placed[alias.operand]) for alias in aliases]
    for operand, place in named:
        _refer(model, operand, data_name, place.offset, folder)
