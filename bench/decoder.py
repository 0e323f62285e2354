"""Compares truecast with its peers on one decoder: export, generation, memory. Writes a page and a JSON document.

Usage: decoder.py [--shape 0.5b|tiny] [--rounds 7] [--export-rounds 2] [--only NAME …] [--without NAME …]
                  [--work .bench/work] [--environments .bench/environments] [--out docs/benchmarks]

What it needs is made when it is missing and kept in the work folder: the checkpoint, its GGUF twin, the yardstick
graph. A contender that cannot take part is named in the report with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import checkpoint
import machine
import write_gguf
import yardstick
from contenders import BLOCK_SIZE, CONTENDERS, Places
from exporting import Exports, export, run_exports
from memory import Run
from report import document, page
from rounds import Generation, run_rounds
from shapes import SHAPES
from workers.turns import THREADS

REPOSITORY = Path(__file__).parents[1]
LARGE_SHAPE = "3b"
PASSED_ON = ("PATH", "HOME", "LANG", "TMPDIR", "SSL_CERT_FILE")
"""Variables of the caller that contenders see; any other could change how one of them computes."""


def prepare(places: Places) -> None:
    """Makes the files that the benchmark itself provides, as far as they are missing."""
    places.folder.mkdir(parents=True, exist_ok=True)
    if not places.checkpoint.exists():
        print("making the checkpoint", flush=True)
        checkpoint.write(places.checkpoint, places.shape)
    if not (places.folder / "model.gguf").exists():
        print("making the GGUF file", flush=True)
        write_gguf.write(places.checkpoint, places.folder / "model.gguf")
    if not (places.folder / "model.onnx").exists():
        print("making the yardstick graph", flush=True)
        yardstick.build(places.folder / "model.onnx", places.shape, BLOCK_SIZE)


def environment() -> dict[str, str]:
    """The variables that every contender's process gets."""
    kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return kept | {"OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1"}


def export_large(places: Places, exports: Exports) -> Run | None:
    """Exports a sparse checkpoint of three billion parameters with truecast, for the memory it takes."""
    large = Places(places.work, places.environments, LARGE_SHAPE)
    if not large.checkpoint.exists():
        large.folder.mkdir(parents=True, exist_ok=True)
        checkpoint.write(large.checkpoint, large.shape, sparse=True)
    print("export of 3 B parameters: truecast", flush=True)
    out = large.folder / "truecast"
    run, reason = export(large, CONTENDERS["truecast"], large.checkpoint, out, environment())
    if run is None:
        exports.missing["truecast"] = f"{exports.missing.get('truecast', '')} (3 B parameters: {reason})".strip()
    return run


def measure(places: Places, args: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    """Runs everything that was asked for and returns the document."""
    cpus = machine.pin(THREADS)
    exports = run_exports(places, names, args.export_rounds, environment())
    large = export_large(places, exports) if args.large else None
    generation = run_rounds(places, names, args.rounds, environment(), cpus) if args.rounds else Generation()
    setting = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine.describe(),
        "threads": THREADS,
        "rounds": args.rounds,
        "block_size": BLOCK_SIZE,
    }
    return document(places, exports, large, generation, setting)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="0.5b")
    parser.add_argument("--rounds", type=int, default=7, help="0: exports only")
    parser.add_argument("--export-rounds", type=int, default=2, help="0: use what an earlier run exported")
    parser.add_argument(
        "--large", action=argparse.BooleanOptionalAction, default=True, help="export 3 B parameters too"
    )
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--without", nargs="+", choices=CONTENDERS, default=[])
    parser.add_argument("--work", type=Path, default=REPOSITORY / ".bench" / "work")
    parser.add_argument("--environments", type=Path, default=REPOSITORY / ".bench" / "environments")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "benchmarks")
    return parser.parse_args()


def main() -> None:
    """Measures and writes the report."""
    args = parsed()
    places = Places(args.work.resolve(), args.environments.resolve(), args.shape)
    prepare(places)
    names = [name for name in args.only if name not in args.without]
    found = measure(places, args, names)
    found["missing"] |= {name: "left out on the command line" for name in CONTENDERS if name not in names}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "decoder.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text = page(found)
    (args.out / "decoder.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
