"""Imports of 4-bit checkpoints: how fast the packed weights are carried over, and whether they stay the same.

Usage: importing.py [--shape 0.5b|tiny] [--rounds 3] [--work .bench/work] [--environments .bench/environments]
                    [--out docs/benchmarks]

Random checkpoints of Qwen2.5-0.5B's shape in the layouts of GPTQ, AWQ, compressed-tensors and GGUF Q4_0 become
finished, unverified artifacts. onnxruntime-genai's builder takes part where it reads the format. Afterwards every
quantized product of both graphs is decoded and compared with the checkpoint's own weights.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

import machine
import quantized
import write_gguf
from contenders import WORKERS, Places
from decoder import environment, prepare
from exporting import last_line, touch
from memory import Run, measure
from shapes import SHAPES
from truecast.checkpoint import Checkpoint, open_checkpoint
from workers.turns import THREADS

REPOSITORY = Path(__file__).parents[1]
MEGABYTE, GIGABYTE = 1e6, 1e9
GENAI_READS = ("gptq", "awq")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MIDDLE = 8
"""Zero point of 4-bit codes where none is given."""


@dataclass(frozen=True)
class Import:
    """One import: the whole process, and the stages that truecast reports (empty for others), in seconds."""

    run: Run
    stages: dict[str, float]


def sources(places: Places) -> dict[str, Path]:
    """The checkpoints, by format; made when they are missing."""
    prepare(places)
    found = {}
    for layout in quantized.LAYOUTS:
        found[layout] = places.folder / layout
        if not found[layout].exists():
            print(f"making the {layout} checkpoint", flush=True)
            quantized.write(found[layout], places.shape, layout)
    found["gguf q4_0"] = places.folder / "model.gguf"
    if not found["gguf q4_0"].exists():
        write_gguf.write(places.checkpoint, found["gguf q4_0"])
    return found


def packed_bytes(source: Path) -> int:
    """Bytes of the tensors' files: packed weights, scales, and the tables that stay in float."""
    return sum(path.stat().st_size for path in open_checkpoint(source).files)


def truecast_import(places: Places, source: Path, out: Path) -> Import | str:
    """One run of truecast's import; the reason where it failed."""
    log = places.folder / "import-truecast.log"
    command = [sys.executable, str(WORKERS / "truecast_import.py"), str(source), str(out)]
    run = _fresh(command, out, log)
    if run.status:
        return last_line(log)
    return Import(run, json.loads(last_line(log)))


def genai_import(places: Places, source: Path, out: Path) -> Import | str:
    """One run of onnxruntime-genai's builder; the reason where it failed."""
    log = places.folder / "import-genai.log"
    python = [str(places.python("genai")), "-m", "onnxruntime_genai.models.builder"]
    settings = ["-p", "int4", "-e", "cpu", "-c", str(places.folder / "genai-cache")]
    run = _fresh([*python, "-i", str(source), "-o", str(out), *settings], out, log)
    return last_line(log) if run.status else Import(run, {})


def _fresh(command: list[str], out: Path, log: Path) -> Run:
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    return measure(command, environment(), log)


# The same weights? ----------------------------------------------------------------------------------------------------


def largest_difference(graph: Path, checkpoint: Checkpoint) -> tuple[float, int]:
    """The largest |held - stored| over all 4-bit products, in parts of the matrix's largest weight; and how many."""
    model = onnx.load(graph)
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    worst, count = 0.0, 0
    for node in model.graph.node:
        if node.op_type == "MatMulNBits" and (names := _parameters(node.name, node.output[0])):
            held = _decoded(node, model, arrays)
            stored = np.concatenate([checkpoint.tensors[name].read() for name in names])
            worst = max(worst, float(np.abs(held - stored).max() / np.abs(stored).max()))
            count += len(names)
    return worst, count


def _parameters(*labels: str) -> list[str]:
    """The checkpoint's tensors that a product holds, from the names of its node and output."""
    for label in labels:
        parts = label.replace("/", ".").split(".")
        layer = next((part for part in parts if part.isdigit()), None)
        found = [name for name in PROJECTIONS if name in label]
        if "qkv_proj" in label:
            found = ["q_proj", "k_proj", "v_proj"]
        if layer is not None and found:
            blocks = {name: "self_attn" if name in PROJECTIONS[:4] else "mlp" for name in found}
            return [f"model.layers.{layer}.{blocks[name]}.{name}.weight" for name in found]
    return []


def _decoded(node: Any, model: Any, arrays: dict[str, Any]) -> Any:
    """The weight of one MatMulNBits, float32 [out, in]."""
    attributes = {item.name: item.i for item in node.attribute}
    rows, width, block = attributes["N"], attributes["K"], attributes["block_size"]
    codes = numpy_helper.to_array(arrays[node.input[1]]).reshape(rows, -1)
    scales = _scales(node.input[2], model, arrays).reshape(rows, -1)
    values = np.stack((codes & 15, codes >> 4), -1).reshape(rows, -1, block).astype(np.float32)
    if len(node.input) > 3 and node.input[3]:
        packed = numpy_helper.to_array(arrays[node.input[3]]).reshape(rows, -1)
        zeros = np.stack((packed & 15, packed >> 4), -1).reshape(rows, -1)[:, : scales.shape[1]]
        values -= zeros[..., None].astype(np.float32)
    else:
        values -= MIDDLE
    return (values * scales[..., None]).reshape(rows, -1)[:, :width]


def _scales(name: str, model: Any, arrays: dict[str, Any]) -> Any:
    """Scales as an initializer, or as one that the graph casts when it is loaded."""
    while name not in arrays:
        name = next(node for node in model.graph.node if name in node.output).input[0]
    return numpy_helper.to_array(arrays[name]).astype(np.float32)


# The report -----------------------------------------------------------------------------------------------------------


def measured(places: Places, rounds: int) -> Iterator[dict[str, Any]]:
    """One row per format and contender."""
    for layout, source in sources(places).items():
        for path in open_checkpoint(source).files:
            touch(path)
        contenders = {"truecast": truecast_import}
        if layout in GENAI_READS:
            contenders["onnxruntime-genai"] = genai_import
        runs: dict[str, list[Import]] = {name: [] for name in contenders}
        for number in range(rounds):
            for name, run in contenders.items():
                print(f"{layout}, {name}, {number + 1} of {rounds}", flush=True)
                result = run(places, source, places.folder / f"import-{name}")
                if isinstance(result, str):
                    yield {"format": layout, "contender": name, "failed": result}
                    break
                runs[name].append(result)
        for name, imports in runs.items():
            if imports:
                yield row(layout, name, imports, source, places.folder / f"import-{name}" / "model.onnx")


def row(layout: str, name: str, imports: list[Import], source: Path, graph: Path) -> dict[str, Any]:
    """The medians of some imports, and what their graph holds."""
    difference, products = largest_difference(graph, open_checkpoint(source))
    size = packed_bytes(source)
    found = {
        "format": layout,
        "contender": name,
        "bytes": size,
        "seconds": [item.run.seconds for item in imports],
        "peak": max(item.run.memory.total for item in imports),
        "largest_difference": difference,
        "products": products,
    }
    if imports[0].stages:
        carried = [item.stages["total"] - item.stages["trace"] for item in imports]
        found["trace"] = statistics.median(item.stages["trace"] for item in imports)
        found["carried"] = carried
        found["rate"] = size / statistics.median(carried)
    return found


COLUMNS = ("format", "contender", "packed", "whole run, s", "carrying over, s", "MB/s", "peak memory", "difference")


def page(found: dict[str, Any]) -> str:
    """The report."""
    lines = [f"| {' | '.join(cells)} |" for cells in (COLUMNS, ["---"] * len(COLUMNS), *map(_cells, found["rows"]))]
    table = "\n".join(lines)
    about = ", ".join(str(value) for value in found["machine"].values())
    return f"""# Imports of quantized checkpoints

{found["date"]}; {about}.

Random checkpoints of the {found["shape"]} shape, 4 bits (groups of 128; Q4_0: 32), made into finished, unverified \
artifacts; medians of {found["rounds"]} runs, contenders in turn. *Carrying over* is the time without Python's imports \
and without the trace: reading, packing, writing, hashing. The rate is the checkpoint's bytes by that time. The \
difference is the largest between the weights that the graph multiplies with and the checkpoint's own, in parts of the \
matrix's largest weight.

{table}

Made by `python bench/importing.py`.
"""


def _cells(item: dict[str, Any]) -> list[str]:
    """One row of the table."""
    if "failed" in item:
        return [item["format"], item["contender"], "", f"failed: {item['failed']}", "", "", "", ""]
    seconds = item["seconds"]
    return [
        item["format"],
        item["contender"],
        f"{item['bytes'] / MEGABYTE:.0f} MB",
        f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})",
        f"{statistics.median(item['carried']):.2f}" if "carried" in item else "",
        f"{item['rate'] / MEGABYTE:.0f}" if "rate" in item else "",
        f"{item['peak'] / GIGABYTE:.2f} GB",
        f"{item['largest_difference']:.2g} in {item['products']} matrices",
    ]


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="0.5b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=REPOSITORY / ".bench" / "work")
    parser.add_argument("--environments", type=Path, default=REPOSITORY / ".bench" / "environments")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "benchmarks")
    return parser.parse_args()


def main() -> None:
    """Measures and writes the report."""
    args = parsed()
    places = Places(args.work.resolve(), args.environments.resolve(), args.shape)
    machine.pin(THREADS)
    found = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine.describe(),
        "shape": args.shape,
        "rounds": args.rounds,
        "rows": list(measured(places, args.rounds)),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "importing.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text = page(found)
    (args.out / "importing.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
