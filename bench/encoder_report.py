"""The page of the encoders' benchmark, from its document alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

FLOAT_GOALS = {
    "minilm": {"1x32": 2.2, "1x256": 1.1, "32x32": 1.0, "32x128": 1.0},
    "modernbert": {"1x32": 1.9, "1x256": 1.2, "32x32": 1.05, "32x128": 1.05},
}
"""The best that any exporter's float32 graph reached on an AVX2 machine: what ours is to reach in every cell."""
INT8_GOALS = {"1x32": 3.0, "1x256": 1.8, "32x32": 1.8, "32x128": 1.8}
FLOAT_COSINE, INT8_COSINE = 0.99999, 0.99
OURS_FLOAT, OURS_INT8 = "truecast", "truecast-int8-dynamic"
MB = 1e6


def page(document: Mapping[str, Any]) -> str:
    """The page, in Markdown."""
    about = document["machine"]
    lines = [
        "# Encoders",
        "",
        f"Run on {document['date']} with {document['threads']} threads: {about['processor']} ({about['features']}), "
        f"{about['cores']} cores, {about['system']}, Python {about['python']}. "
        "`make bench` repeats it; `encoders.json` has every number.",
        "",
        "Each cell is PyTorch's time over the contender's (higher is faster) for one batch x length, the median of the "
        "rounds. The cosine is the lowest over the four sizes of the mean over all vectors of the last hidden state.",
        "",
    ]
    for model, found in document["models"].items():
        lines += [*_table(model, found), "", *_goals(model, found), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(model: str, found: Mapping[str, Any]) -> Iterator[str]:
    title = {"minilm": "MiniLM-L6, real weights", "modernbert": "ModernBERT's shape, 8 layers, random weights"}[model]
    rows = found["contenders"]
    sizes = list(next(iter(rows.values()))["ratio"])
    yield f"## {title}"
    yield ""
    yield f"| | {' | '.join(sizes)} | cosine | on disk |"
    yield f"|---|{'---|' * (len(sizes) + 2)}"
    for row in rows.values():
        cells = [f"{row['ratio'][s]['median']:.2f} ({row['milliseconds'][s]:.1f} ms)" for s in sizes]
        yield f"| {row['title']} | {' | '.join(cells)} | {_cosine(row):.6f} | {row['bytes'] / MB:.0f} MB |"
    for name, reason in found["missing"].items():
        yield ""
        yield f"{name} is missing: {reason}"
    yield ""
    yield f"Other programs took {found['foreign']:.0%} of the processors' time during the rounds."


def _cosine(row: Mapping[str, Any]) -> float:
    return float(min(row["cosine"].values()))


def _goals(model: str, found: Mapping[str, Any]) -> Iterator[str]:
    yield "| goal | " + " | ".join(INT8_GOALS) + " | cosine |"
    yield "|---|" + "---|" * (len(INT8_GOALS) + 1)
    kinds = ((OURS_FLOAT, FLOAT_GOALS[model], FLOAT_COSINE), (OURS_INT8, INT8_GOALS, INT8_COSINE))
    for name, goals, cosine in kinds:
        row = found["contenders"].get(name)
        if row is None:
            continue
        cells = [_verdict(row["ratio"][size]["median"], least) for size, least in goals.items()]
        yield f"| {row['title']} | {' | '.join(cells)} | {_verdict(_cosine(row), cosine)} |"


def _verdict(value: float, least: float) -> str:
    return f"≥ {least:g}: {'reached' if value >= least else 'missed'}"
