"""The inspection as tables for a terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from truecast.checkpoint.tasks import GENERATION
from truecast.inspection.model import BYTE_BITS, WHOLE_ROW, Inspection, StorageGroup
from truecast.weights.names import AS_IS


def render(inspection: Inspection) -> RenderableType:
    """The inspection: what it is and what to choose, what it can become, and then how it is stored."""
    parts: list[RenderableType] = [_facts(inspection)]
    if inspection.obstacle is None:
        parts.append(_costs(inspection))
    parts.append(_storage(inspection))
    if inspection.quantization and inspection.obstacle is None:
        parts.append(_kept(inspection))
    return Group(*parts)


def _facts(inspection: Inspection) -> Table:
    table = Table.grid(padding=(0, 2))
    shape = (inspection.layers, inspection.heads, inspection.kv_heads, inspection.head_dim)
    layers, heads, kv_heads, head_dim = ("?" if size is None else size for size in shape)
    cache = inspection.kv_bytes_per_token
    unknown = "unknown" if inspection.task == GENERATION else "none"
    for name, value in (
        ("Checkpoint", f"{inspection.path} ({inspection.format}, {decimal(inspection.stored_bytes)})"),
        ("Architecture", f"{inspection.architecture} ({inspection.model_type}), for {inspection.task}"),
        ("Parameters", f"{inspection.parameters:,}"),
        ("Layers", f"{layers} with {heads} heads, {kv_heads} for keys and values, of {head_dim}"),
        ("Vocabulary", _count(inspection.vocabulary)),
        ("Context", f"{_count(inspection.context_length)} tokens"),
        ("Cache", f"{decimal(cache)} per token in float32" if cache is not None else unknown),
        *(_quantization(inspection) if inspection.quantization else ()),
        *_advice(inspection),
    ):
        table.add_row(Text(name, "bold"), Text(value))
    return table


def _advice(inspection: Inspection) -> Iterator[tuple[str, str]]:
    """What hinders, what to know, and what to choose."""
    if inspection.obstacle is not None:
        yield "Obstacle", f"It can become nothing yet: {inspection.obstacle}."
    yield from (("Note", notice) for notice in inspection.notices)
    if (advice := inspection.recommendation) is not None:
        yield "Recommended", f"{advice.precision} on {advice.provider}: {advice.reason}"


def _quantization(inspection: Inspection) -> list[tuple[str, str]]:
    quantized = [group for group in inspection.storage if not group.is_float]
    bits = sum(group.nbytes for group in quantized) * BYTE_BITS / max(sum(group.weights for group in quantized), 1)
    ignored = [("Not needed", f"{count} tensors: {reason}") for reason, count in inspection.ignored.items()]
    return [
        ("Quantized", f"by {inspection.quantization}, {bits:.2f} bits per quantized weight"),
        ("Left in float", ", ".join(inspection.left_in_float) or "no matrices"),
        *ignored,
    ]


def _count(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"


NAME_WIDTH = 48
"""Columns for the names of tensors; longer ones are folded."""


def _table(title: str, first: str, *others: str, width: int | None = None) -> Table:
    """A table that fits 80 columns: no lines between columns, and names and words wrap."""
    table = Table(
        title=f"\n{title}",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column(first, overflow="fold", width=width)
    for heading in others:
        table.add_column(heading, no_wrap=heading not in ("target", "stored as"), overflow="fold")
    return table


def _storage(inspection: Inspection) -> Table:
    width = min(NAME_WIDTH, max((len(group.pattern) for group in inspection.storage), default=0))
    table = _table("How it is stored", "tensors", "stored as", "number", "size", width=max(width, len("tensors")))
    for group in inspection.storage:
        table.add_row(group.pattern, group.stored_as, str(group.tensors), decimal(group.nbytes))
    return table


def _kept(inspection: Inspection) -> Table:
    """What as-is makes of each kind of storage; where it takes more than the checkpoint, by how much."""
    table = _table("What as-is makes of it", "becomes", "stored as", "bits", "group", "size", "on disk", "more")
    kinds: dict[tuple[str, int | None, str], list[StorageGroup]] = defaultdict(list)
    for group in inspection.storage:
        if group.becomes:
            kinds[group.stored_as, group.group_size, group.becomes].append(group)
    for (stored_as, size, becomes), groups in kinds.items():
        stored, kept = sum(group.nbytes for group in groups), sum(group.as_is_bytes or 0 for group in groups)
        bits = stored * BYTE_BITS / max(sum(group.weights for group in groups), 1)
        table.add_row(becomes, stored_as, f"{bits:.2f}", _group_word(size), *_sizes(stored, kept))
    stored = sum(group.nbytes for group in inspection.storage if group.becomes)
    kept = next(choice.disk for choice in inspection.choices if choice.precision == AS_IS)
    table.add_row("all", "", "", "", *_sizes(stored, kept))
    return table


def _sizes(stored: int, kept: int) -> tuple[str, str, str]:
    more = kept / stored - 1 if stored else 0.0
    return decimal(stored), decimal(kept), f"{more:+.1%}" if abs(more) >= SHOWN_SHARE else ""


SHOWN_SHARE = 0.0005
"""Smallest difference in size that is shown, one in the last digit."""


def _group_word(size: int | None) -> str:
    return "" if size is None else "row" if size == WHOLE_ROW else str(size)


def _costs(inspection: Inspection) -> Table:
    """One row per cost; targets that cost the same share it."""
    heading = ("precision", "target", "on disk", "to export", "to prove", "to run")
    table = _table("What it can become, and the memory that takes (estimates)", *heading)
    targets: dict[tuple[str, ...], list[str]] = defaultdict(list)
    order = list(dict.fromkeys(choice.precision for choice in inspection.choices))
    for choice in sorted(inspection.choices, key=lambda choice: order.index(choice.precision)):
        sizes = (choice.disk, choice.export_peak, choice.proof_peak, choice.run_peak)
        targets[choice.precision, *(decimal(size) for size in sizes)].append(choice.target)
    for (precision, *shown), names in targets.items():
        table.add_row(precision, ", ".join(names), *shown)
    return table
