"""Writes the table of kernels of the installed ONNX Runtime, from which `truecast diagnose` predicts placement.

    python scripts/make_kernel_table.py src/truecast/diagnosis/data/cpu.json.gz      # with the wheel onnxruntime
    python scripts/make_kernel_table.py src/truecast/diagnosis/data/gpu.json.gz      # with the wheel onnxruntime-gpu
    python scripts/make_kernel_table.py gpu.json.gz --rows rows.json --version 1.31.1    # from a saved list

Run it once per wheel: a wheel knows its own providers only. The wheel onnxruntime-gpu must find the CUDA and cuDNN
libraries to list CUDA's kernels; nothing is computed, so a machine without a GPU serves where they are installed.

The table is JSON, compressed: `onnxruntime` (its version), `types` (all dtypes, referred to by position), `kernels`
(provider → "domain::operator" → [[first version, last version or null, {constraint: [dtypes]}], …]) and
`session_keys`, every session configuration key that occurs in the library.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

Row = tuple[str, str, str, tuple[int, int], dict[str, list[str]]]
"""Provider, domain, operator, versions, dtypes of each constraint."""

OPEN_END = 2**31 - 1
"""ONNX Runtime's last version of a kernel that has none."""
KEY = re.compile(rb"(?<![\w./])(?:session|optimization|mlas|ep|memory)\.[a-z0-9_]+(?:\.[a-z0-9_]+)*(?=\0)")


def installed_rows() -> list[Row]:
    """The kernels of the installed ONNX Runtime."""
    return [
        (kernel.provider, kernel.domain, kernel.op_name, kernel.version_range, kernel.type_constraints)
        for kernel in state.get_all_opkernel_def()
    ]


def session_keys() -> list[str]:
    """Strings of the library that look like a session key; a key that is pasted together there is not found."""
    found = KEY.findall(Path(state.__file__).read_bytes())
    return sorted({key.decode() for key in found})


def table(rows: Iterable[Row], version: str) -> dict[str, Any]:
    """The table of some kernels."""
    rows = list(rows)
    types = sorted({name for *_, constraints in rows for names in constraints.values() for name in names})
    position = {name: index for index, name in enumerate(types)}
    kernels: dict[str, dict[str, list[Any]]] = {}
    for provider, domain, operator, (first, last), constraints in rows:
        held = {name: sorted(position[allowed] for allowed in names) for name, names in sorted(constraints.items())}
        entry = [first, None if last == OPEN_END else last, held]
        kernels.setdefault(provider, {}).setdefault(f"{domain}::{operator}", []).append(entry)
    return {"onnxruntime": version, "types": types, "kernels": kernels, "session_keys": session_keys()}


def main() -> None:
    """Writes one table; the same kernels give the same bytes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=Path, help="a JSON list of rows that was saved on another machine")
    parser.add_argument("--version", default=ort.__version__, help="the version of ONNX Runtime that they are of")
    given = parser.parse_args()
    rows = json.loads(given.rows.read_text()) if given.rows else installed_rows()
    document = json.dumps(table(rows, given.version), sort_keys=True, separators=(",", ":"))
    given.out.write_bytes(gzip.compress(document.encode(), mtime=0))
    print(f"{given.out}: {len(rows)} kernels, {given.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
