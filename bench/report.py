"""Turns what was measured into one JSON document, and that document into a page.

The page holds nothing that the document does not: `page(document)` can be called again on a document from disk.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from contenders import CONTENDERS, Places
from exporting import Exports
from memory import Memory, Run
from rounds import LONGEST_TURN, MEASURES, Generation

OURS = ("truecast", "truecast-genai")
GB, MB = 1e9, 1e6


@dataclass(frozen=True)
class Goal:
    """What we want of a ratio: our speed over a peer's, for one of our targets, in some measures."""

    ours: str
    peer: str
    least: float
    measures: tuple[str, ...]


DECODE = ("decode", "decode, sampled")
PREFILL = ("prefill of 128", "prefill of 512")
GOALS = (
    Goal("truecast", "yardstick", 0.92, DECODE),
    Goal("truecast-genai", "yardstick", 0.97, DECODE),
    *(Goal(ours, "yardstick", 0.97, PREFILL) for ours in OURS),
    *(Goal(ours, "llama", 1.2, DECODE) for ours in OURS),
    *(Goal(ours, "llama", 1.05, PREFILL) for ours in OURS),
    *(Goal(ours, "genai", 1.9, DECODE) for ours in OURS),
    *(Goal(ours, "genai", 2.5, PREFILL) for ours in OURS),
)
EXPORT_TIME_LIMIT = 1.0
"""Our export's seconds over those of onnxruntime-genai's builder."""
EXPORT_MEMORY_LIMIT = 1.2 * GB
GROWTH_LIMIT = 300 * MB
"""More bytes that the export of a checkpoint of three billion parameters may take."""
GENERATION_MEMORY_LIMIT = 1.3
"""Peak memory while generating over weights on disk plus cache."""


def document(
    places: Places, exports: Exports, large: Run | None, generation: Generation, setting: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything measured, as JSON holds it."""
    cache = places.shape.cache_bytes(LONGEST_TURN)
    return {
        **setting,
        "shape": asdict(places.shape) | {"name": places.shape_name},
        "export": {name: _export(exports, name) for name in exports.runs},
        "large_export": large.as_dict() if large else None,
        "generation": {name: _generation(places, generation, name, cache) for name in generation.turns},
        "ratios": {ours: _ratios(generation, ours) for ours in OURS if ours in generation.turns},
        "foreign_share": generation.foreign,
        "missing": _missing(exports, generation),
    }


def _missing(exports: Exports, generation: Generation) -> dict[str, str]:
    """Why each contender is missing; an export that failed is the reason before a model that could not be loaded."""
    return {**generation.missing, **exports.missing}


def _export(exports: Exports, name: str) -> dict[str, Any]:
    """One contender's export: its runs, and what the graph holds."""
    runs = [run.as_dict() for run in exports.runs[name]]
    return {"runs": runs, "graph": exports.products[name], "weight_bytes": exports.weight_bytes[name]}


def _generation(places: Places, generation: Generation, name: str, cache: int) -> dict[str, Any]:
    """One contender's generation: speeds by measure and round, memory, and how it computed."""
    loaded, weights = generation.loaded[name], CONTENDERS[name].weight_bytes(places)
    return {
        "speeds": {measure: generation.speeds(name, measure) for measure in MEASURES},
        "cores": generation.cores(name),
        "versions": loaded.versions,
        "load_seconds": loaded.seconds,
        "loading_peak": asdict(loaded.peak),
        "loaded": asdict(loaded.resident),
        "generating_peak": asdict(generation.generating[name]),
        "weight_bytes": weights,
        "cache_bytes": cache,
        "memory_ratio": generation.generating[name].total / (weights + cache),
    }


def _ratios(generation: Generation, ours: str) -> dict[str, dict[str, list[float]]]:
    """Our speed over each peer's, by peer and measure, round by round."""
    found: dict[str, dict[str, list[float]]] = {}
    for peer in generation.turns:
        for measure in MEASURES if peer != ours else ():
            pairs = zip(generation.speeds(ours, measure), generation.speeds(peer, measure), strict=True)
            found.setdefault(peer, {})[measure] = [mine / theirs for mine, theirs in pairs]
    return found


def page(found: Mapping[str, Any]) -> str:
    """The document as Markdown."""
    parts = [
        "# Decoder: export and generation, side by side",
        _introduction(found),
        "## Generation",
        _speed_table(found),
        *(f"### {CONTENDERS[ours].title}, over each peer\n\n{_ratio_table(found, ours)}" for ours in found["ratios"]),
        "## Memory while generating",
        _memory_table(found),
        "## Export to int4",
        _export_table(found),
        "## Goals",
        _goal_table(found),
        "## Not measured",
        "\n".join(f"- **{CONTENDERS[name].title}**: {reason}" for name, reason in found["missing"].items())
        or "Nothing.",
        "## What ran",
        _versions(found),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _introduction(found: Mapping[str, Any]) -> str:
    """On what, how, and how quiet the machine was."""
    machine, shape = found["machine"], found["shape"]
    return f"""Written by `make bench`; the numbers are in `decoder.json` beside this page.

A random checkpoint of Qwen2.5's type and {shape["name"].upper()} shape: hidden {shape["hidden"]}, \
{shape["layers"]} layers, {shape["heads"]}/{shape["kv_heads"]} heads, intermediate {shape["intermediate"]}, \
vocabulary {shape["vocab"]}, tied, bfloat16. Weights of 4 bits in blocks of {found["block_size"]}, products with \
int8 activations.

{machine["processor"]} ({machine["features"]}), {machine["cores"]} cores, {machine["memory"]}, {machine["system"]}, \
Python {machine["python"]}; {found["threads"]} threads each. Of the processors' time during the rounds, \
{found["foreign_share"]:.0%} went to something other than the contenders; above a few per cent, distrust the spread.

All contenders are loaded at once and take turns: {found["rounds"]} rounds, the order rotated, each contender in a \
process and Python environment of its own. Times run from the call of each contender's own generating function to the \
arrival of a token, its choice included (and, for truecast alone, its text). *Decode* begins with 128 tokens in the \
cache and takes 32 tokens, the likeliest each; \
*sampled* draws them (temperature 0.8, top-k 40, top-p 0.95; the yardstick cannot, and \
takes the likeliest). *Prefill* is the prompt's length over the time to the first token. Numbers are medians, with the \
smallest and the largest round in parentheses; ratios are taken within each round."""


def _speed_table(found: Mapping[str, Any]) -> str:
    """Tokens per second by contender and measure."""
    rows = [
        [CONTENDERS[name].title, *(_spread(values["speeds"][m], 1) for m in MEASURES), f"{values['cores']:.2f}"]
        for name, values in found["generation"].items()
    ]
    return table(["tokens/s", *MEASURES, "cores used"], rows)


def _ratio_table(found: Mapping[str, Any], ours: str) -> str:
    """Our speed over each peer's."""
    ratios = found["ratios"][ours]
    rows = [[CONTENDERS[peer].title, *(_spread(values[m], 2) for m in MEASURES)] for peer, values in ratios.items()]
    return table(["ratio to", *MEASURES], rows)


def _memory_table(found: Mapping[str, Any]) -> str:
    """Peaks while loading and while generating."""
    rows = [
        [
            CONTENDERS[name].title,
            _megabytes(values["weight_bytes"]),
            _memory(values["loading_peak"]),
            _memory(values["generating_peak"]),
            f"{values['memory_ratio']:.2f}",
        ]
        for name, values in found["generation"].items()
    ]
    head = ["MB", "weights on disk", "peak, loading", "peak, generating", "generating ÷ (weights + cache)"]
    text = f"Peak of the resident memory, in parentheses its peaks of anonymous + file-backed memory. {_METHOD}"
    return f"{text}\n\n{table(head, rows)}"


_METHOD = (
    "Read from /proc/PID/status (RssAnon; RssFile and RssShmem) of every process of the tree each 10 ms, "
    "in a pass that is not timed."
)


def _export_table(found: Mapping[str, Any]) -> str:
    """Time and memory of each exporter, and the large checkpoint."""
    rows = [
        [
            CONTENDERS[name].title,
            _spread([run["seconds"] for run in values["runs"]], 1),
            _memory(_worst(values["runs"])),
            _megabytes(values["weight_bytes"]),
            "; ".join(f"{count} {kind}" for kind, count in values["graph"].items()),
        ]
        for name, values in found["export"].items()
    ]
    if found["large_export"]:
        run = found["large_export"]
        large = ["truecast, 3 B parameters (sparse file)", f"{run['seconds']:.1f}", _memory(run["memory"]), "", ""]
        rows.append(large)
    head = ["", "seconds", "peak, MB", "written, MB", "products in the graph"]
    text = (
        "The whole command, proofs off, from a checkpoint in the page cache. Peak memory as above, read each 10 ms "
        "while it runs."
    )
    return f"{text}\n\n{table(head, rows)}" if rows else "No exporter ran."


def _worst(runs: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The largest of each peak over some runs."""
    peak = Memory()
    for run in runs:
        peak = peak.peak(Memory(**run["memory"]))
    return asdict(peak)


def _goal_table(found: Mapping[str, Any]) -> str:
    """What we want, what we got, and whether it is enough."""
    return table(["goal", "wanted", "got", ""], [*_speed_goals(found), *_export_goals(found), *_memory_goals(found)])


def _speed_goals(found: Mapping[str, Any]) -> list[list[str]]:
    """One row for each ratio of speeds that has a goal."""
    rows = []
    for goal in GOALS:
        for measure in goal.measures:
            name = f"{measure}: {CONTENDERS[goal.ours].title} ÷ {CONTENDERS[goal.peer].title}"
            ratios = found["ratios"].get(goal.ours, {}).get(goal.peer, {}).get(measure)
            got = statistics.median(ratios) if ratios else None
            rows.append(_goal(name, f"≥ {goal.least}", got, got is not None and got >= goal.least))
    return rows


def _export_goals(found: Mapping[str, Any]) -> list[list[str]]:
    """Time and memory of our export."""
    rows = []
    runs = {name: values["runs"] for name, values in found["export"].items()}
    seconds = {name: statistics.median(run["seconds"] for run in values) for name, values in runs.items()}
    for ours in OURS:
        ratio = seconds[ours] / seconds["genai"] if ours in seconds and "genai" in seconds else None
        name = f"export time: {CONTENDERS[ours].title} ÷ onnxruntime-genai"
        rows.append(_goal(name, f"≤ {EXPORT_TIME_LIMIT}", ratio, ratio is not None and ratio <= EXPORT_TIME_LIMIT))
        peak = _worst(runs[ours])["total"] if ours in runs else None
        within = peak is not None and peak <= EXPORT_MEMORY_LIMIT
        rows.append(_goal(f"export memory, GB: {CONTENDERS[ours].title}", "≤ 1.2", peak and peak / GB, within))
    large = found["large_export"]
    growth = large["memory"]["total"] - _worst(runs["truecast"])["total"] if large and "truecast" in runs else None
    within = growth is not None and growth <= GROWTH_LIMIT
    rows.append(_goal("export memory, more for 3 B parameters, GB", "≤ 0.3", growth and growth / GB, within))
    return rows


def _memory_goals(found: Mapping[str, Any]) -> list[list[str]]:
    """Memory of our generation."""
    rows = []
    for ours in OURS:
        ratio = found["generation"].get(ours, {}).get("memory_ratio")
        name = f"generating memory ÷ (weights + cache): {CONTENDERS[ours].title}"
        met = ratio is not None and ratio <= GENERATION_MEMORY_LIMIT
        rows.append(_goal(name, f"≤ {GENERATION_MEMORY_LIMIT}", ratio, met))
    return rows


def _goal(name: str, wanted: str, got: float | None, met: bool) -> list[str]:
    """One row of the table of goals."""
    if got is None:
        return [name, wanted, "", "not measured"]
    return [name, wanted, f"{got:.2f}", "met" if met else "**missed**"]


def _versions(found: Mapping[str, Any]) -> str:
    """What each worker said about its libraries."""
    lines = []
    for name, values in found["generation"].items():
        said = ", ".join(f"{library} {version}" for library, version in values["versions"].items())
        lines.append(f"- {CONTENDERS[name].title}: {said}; loaded in {values['load_seconds']:.1f} s")
    return "\n".join(lines)


def _spread(values: Sequence[float], digits: int) -> str:
    """The median, with the smallest and the largest."""
    if not values:
        return ""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _megabytes(count: float) -> str:
    return f"{count / MB:.0f}"


def _memory(peaks: Mapping[str, int]) -> str:
    """The total, then what is anonymous and what file-backed."""
    return f"{_megabytes(peaks['total'])} ({_megabytes(peaks['anonymous'])} + {_megabytes(peaks['file'])})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
