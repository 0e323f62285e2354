"""One import of a quantized checkpoint with truecast, unverified, with the time of each stage.

Usage: truecast_import.py SOURCE OUT      prints {"load": …, "trace": …, "total": …} in seconds; `load` is the imports
"""

from __future__ import annotations

import json
import sys
import time

begin = time.perf_counter()

from truecast.exporting import export  # noqa: E402  (its imports are timed)
from truecast.request import Request  # noqa: E402

loaded = time.perf_counter()
marks: dict[str, list[float]] = {}


def note(stage: str, done: int, total: int) -> None:
    """Notes when a stage was last heard of."""
    marks.setdefault(stage, []).append(time.perf_counter())


export(sys.argv[1], sys.argv[2], Request(precision="as-is", verify=False), progress=note)
end = time.perf_counter()
trace = marks["trace"][-1] - marks["trace"][0]
print(json.dumps({"load": loaded - begin, "trace": trace, "total": end - loaded}))
