"""Whether a finding of the survey is true, measured another way than by the rule that made it.

Each measurement uses the file with ONNX Runtime, onnx or the quantizers alone; truecast gives no more than made-up
inputs. What a run itself showed (shapes, errors, times) is run again here with the shapes that the finding names.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process

from truecast.diagnosis import Diagnosis, Finding
from truecast.diagnosis.diagnosing import gather, id_bounds
from truecast.diagnosis.feeds import FIRST_TRIES, Sizes, make_feeds

logging.disable(logging.WARNING)
PRECISE = "session.x64quantprecision"
Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Verdict:
    """`true`, `false` or `not judged`, and how that was found."""

    word: str
    how: str


def judge(file: Path, finding: Finding, found: Diagnosis) -> Verdict:
    """The verdict on one finding about a file."""
    measure = MEASURES.get(finding.code)
    if measure is None:
        return Verdict("not judged", "")
    holds, how = measure(file, finding)
    return Verdict("not judged" if holds is None else str(holds).lower(), how)


def session(file: Path, optimize: bool = True, **entries: str) -> ort.InferenceSession:
    """A session on the processor that says nothing."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def working(file: Path) -> tuple[ort.InferenceSession, Sizes, Feeds]:
    """A session with the first made-up inputs that it takes."""
    opened, bounds = session(file), id_bounds(gather(file))
    for sizes in FIRST_TRIES:
        feeds = make_feeds(opened.get_inputs(), sizes, bounds)
        if not isinstance(ran(opened, feeds), str):
            return opened, sizes, feeds
    raise ValueError(f"{file} takes none of the made-up inputs")


def ran(opened: ort.InferenceSession, feeds: Feeds) -> list[np.ndarray] | str:
    """The outputs, or the first line of the error."""
    options = ort.RunOptions()
    options.log_severity_level = 4
    try:
        return list(opened.run(None, dict(feeds), options))
    except Exception as error:  # whatever the runtime raises is the answer
        return str(error).splitlines()[0][:100]


def other_rows(file: Path, finding: Finding) -> tuple[bool | None, str]:
    """One, two and three rows, where the rest stays as it was."""
    opened, sizes, _ = working(file)
    bounds, results = id_bounds(gather(file)), {}
    for rows in (1, 2, 3):
        results[rows] = ran(opened, make_feeds(opened.get_inputs(), replace(sizes, batch=rows), bounds))
    failed = [rows for rows, result in results.items() if isinstance(result, str)]
    shapes = {rows: [part.shape for part in result] for rows, result in results.items() if not isinstance(result, str)}
    return bool(failed), f"rows that fail: {failed or 'none'}; first outputs {[held[0] for held in shapes.values()]}"


def refuses_others(file: Path, finding: Finding) -> tuple[bool | None, str]:
    """One more in each axis of the first input is refused."""
    opened, _, feeds = working(file)
    first = opened.get_inputs()[0]
    shape = feeds[first.name].shape
    for axis in range(len(shape)):
        larger = [(0, int(axis == each)) for each in range(len(shape))]
        result = ran(opened, {**feeds, first.name: np.pad(feeds[first.name], larger)})
        if not isinstance(result, str):
            return False, f"axis {axis} of {first.name} takes one more"
    return True, f"one more in any axis of {first.name} is refused"


def sizes_fail(file: Path, finding: Finding) -> tuple[bool | None, str]:
    """The shapes that are named run or fail again, with zeros as with random numbers."""
    opened, sizes, _ = working(file)
    bounds = id_bounds(gather(file))
    height, width = sizes.pixels
    tried = [replace(sizes, batch=rows) for rows in (1, 2, 3)]
    tried += [
        replace(sizes, length=1),
        replace(sizes, length=sizes.length + 10),
        replace(sizes, samples=sizes.samples * 3 // 2),
    ]
    tried.append(replace(sizes, pixels=(height * 3 // 2, width * 3 // 2)))
    feeds = [make_feeds(opened.get_inputs(), each, bounds) for each in tried]
    zeros = [{name: np.zeros_like(value) for name, value in held.items()} for held in feeds]
    failing = [index for index, held in enumerate(feeds) if isinstance(ran(opened, held), str)]
    also = [index for index in failing if isinstance(ran(opened, zeros[index]), str)]
    return bool(also), f"{len(also)} of {len(tried)} sizes fail with zeros too" if failing else "every size runs"


def declared_otherwise(file: Path, finding: Finding) -> tuple[bool | None, str]:
    """What comes back, against what onnx reads of the declaration."""
    opened, sizes, _ = working(file)
    bounds, wrong = id_bounds(gather(file)), set()
    for rows in (1, 2, 3):
        results = ran(opened, make_feeds(opened.get_inputs(), replace(sizes, batch=rows), bounds))
        for info, result in zip(opened.get_outputs(), results if isinstance(results, list) else [], strict=False):
            literal = len(info.shape) != result.ndim or any(
                isinstance(dim, int) and dim != size for dim, size in zip(info.shape, result.shape, strict=True)
            )
            named = any(
                dim == "batch_size" and size != rows for dim, size in zip(info.shape, result.shape, strict=False)
            )
            if literal or named:
                wrong.add(f"{info.name} {info.shape} came as {list(result.shape)}")
    return bool(wrong), "; ".join(sorted(wrong)[:2]) or "every output is as declared"


def tools_stop(file: Path, finding: Finding) -> tuple[bool | None, str]:
    """The tools that are named are run on the whole file."""
    ends = {}
    with TemporaryDirectory() as folder, chdir(folder):
        for name, tool in (("quantize_dynamic", quantize_dynamic), ("quant_pre_process", quant_pre_process)):
            if any(each.startswith(name) for each in finding.nodes):
                ends[name] = _end(tool, file, Path(folder) / "made.onnx")
    return all(ends.values()), ", ".join(f"{name}: {end or 'ended well'}" for name, end in ends.items())


def _end(tool: Callable[..., None], file: Path, out: Path) -> str:
    try:
        tool(str(file), str(out))
    except Exception as error:  # whatever it raises is the answer
        return f"{type(error).__name__}"
    return ""


def saturates(file: Path, finding: Finding) -> tuple[bool | None, str]:
    """The outputs change when products are made exact."""
    _, _, feeds = working(file)
    plain, precise = ran(session(file), feeds), ran(session(file, **{PRECISE: "1"}), feeds)
    if isinstance(plain, str) or isinstance(precise, str):
        return None, "it does not run"
    differs, how = _differ(plain, precise, f"with {PRECISE}=1")
    return differs == (finding.severity == "warning"), how


def optimizer_differs(file: Path, finding: Finding) -> tuple[bool | None, str]:
    """The outputs with and without the runtime's optimizer."""
    _, _, feeds = working(file)
    plain, bare = ran(session(file), feeds), ran(session(file, optimize=False), feeds)
    if isinstance(plain, str) or isinstance(bare, str):
        return None, "it does not run"
    return _differ(plain, bare, "without the optimizer", 1e-2)


def _differ(first: list[np.ndarray], second: list[np.ndarray], how: str, least: float = 0.0) -> tuple[bool, str]:
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a.dtype.kind == "f" and a.size]
    worst = max((float(np.abs(a - b).max() / (np.abs(b).max() or 1)) for a, b in pairs), default=0.0)
    if any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True) if a.dtype.kind in "iub"):
        return True, f"whole numbers change {how}"
    return worst > least, f"outputs differ by {worst:.2g} {how}"


def stored_twice(file: Path, finding: Finding) -> tuple[bool | None, str]:
    """Hashes of every tensor of 4 KiB or more."""
    sizes = Counter(sha256(held.tobytes() + str(held.shape).encode()).hexdigest() for held in _tensors(file))
    twice = sum(count - 1 for count in sizes.values())
    return twice > 0, f"{twice} tensors of equal bytes"


def _tensors(file: Path) -> Iterator[np.ndarray]:
    model = onnx.load(file)
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        held = [a for node in graph.node for a in node.attribute]
        graphs += [a.g for a in held if a.HasField("g")]
        for tensor in (*graph.initializer, *(a.t for a in held if a.HasField("t"))):
            array = onnx.numpy_helper.to_array(tensor)
            if array.nbytes >= 4096:
                yield array


def masked_rows(file: Path, finding: Finding) -> tuple[bool | None, str]:
    """A first row whose mask or length is zero throughout."""
    opened, sizes, _ = working(file)
    feeds = make_feeds(opened.get_inputs(), sizes, id_bounds(gather(file)))
    for name in (name for name in feeds if "mask" in name or "length" in name or "roles" in name):
        feeds[name][0] = 0
    results = ran(opened, feeds)
    if isinstance(results, str):
        return None, f"such a row is refused: {results}"
    broken = [part for part in results if part.dtype.kind == "f" and np.isnan(part).any()]
    return bool(broken), "NaN comes back" if broken else "no NaN comes back"


def float64(file: Path, finding: Finding) -> tuple[bool | None, str]:
    """Float64 among what a profile of a run says that nodes returned."""
    _, _, feeds = working(file)
    with TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "p")
        opened = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        opened.run(None, dict(feeds))
        text = Path(opened.end_profiling()).read_text()
    count = text.count('"double"')
    return count > 0, f"{count} tensors of double in a profile"


def optimized_has(file: Path, finding: Finding) -> tuple[bool | None, str]:
    """SkipLayerNormalization in the graph that the runtime saves."""
    with TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(Path(folder) / "o.onnx")
        ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(options.optimized_model_filepath, load_external_data=False).graph.node
    fused = sum(node.op_type == "SkipLayerNormalization" for node in nodes)
    return fused > 0, f"{fused} in the graph that the runtime runs"


def grows(file: Path, finding: Finding) -> tuple[bool | None, str]:
    """The graph that the runtime saves against the file."""
    with TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "o.onnx")
        ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        size = Path(options.optimized_model_filepath).stat().st_size
    return (
        size > 2 * file.stat().st_size,
        f"{file.stat().st_size / 1e6:.1f} MB in the file, {size / 1e6:.1f} MB after load",
    )


def not_finite(file: Path, finding: Finding) -> tuple[bool | None, str]:
    """Zeros and small positive numbers."""
    opened, _, feeds = working(file)
    tries = {"zeros": np.zeros_like, "halves": lambda value: np.full_like(value, 0.5)}
    finite = []
    for name, make in tries.items():
        fed = {key: make(value) if value.dtype.kind == "f" else value for key, value in feeds.items()}
        results = ran(opened, fed)
        if not isinstance(results, str) and all(np.isfinite(part).all() for part in results if part.dtype.kind == "f"):
            finite.append(name)
    return (
        not finite,
        f"finite for {' and '.join(finite)}" if finite else "neither zeros nor halves give finite outputs",
    )


MEASURES: Mapping[str, Callable[[Path, Finding], tuple[bool | None, str]]] = {
    "TC111": optimized_has,
    "TC204": saturates,
    "TC301": refuses_others,
    "TC303": other_rows,
    "TC306": sizes_fail,
    "TC307": declared_otherwise,
    "TC309": tools_stop,
    "TC403": float64,
    "TC501": stored_twice,
    "TC509": grows,
    "TC602": masked_rows,
    "TC603": masked_rows,
    "TC709": not_finite,
    "TC710": optimizer_differs,
}
