"""The proof of a module without a cache: as it lies, then run against the author's on a grid over its free axes.

Data flow: graph and weights are checked as they lie → the author's module takes the checkpoint's weights, then those
that the artifact holds → outputs at every point, in every way of running the graph → `Certificate`.

The tight rule is that of decoders: |y - r| ≤ max(8·|r32 - r64|, 1e-4·max|r|) for every output. Quantized weights are
compared tightly with the author's module carrying the very weights that the artifact holds, products exact; what int8
activations and the format cost is measured as the cosine of outputs, and gated against catastrophe. Graphs of 16 bits
are run as their float32 twin, and follow rules of their own (`module_halves`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from truecast.artifact import SAVED_NAME, Certificate, Check, Manifest, Status
from truecast.errors import InputError
from truecast.halves.model import Half
from truecast.measure.environment import environment
from truecast.proof.claims import claims_check, half_of, with_own
from truecast.proof.cosines import Cosines
from truecast.proof.formulas import module_formulas
from truecast.proof.held import HeldWeight, held_weights, load_graph
from truecast.proof.integer_checks import quantization_checks
from truecast.proof.module_halves import TWIN, TorchHalf, half_checks, rounding_check, table_check
from truecast.proof.module_points import ModulePoint, module_grid
from truecast.proof.module_static import module_graph_checks
from truecast.proof.operators import Array
from truecast.proof.parity import NOISE_FACTOR, RELATIVE, half_limit
from truecast.proof.quality import Noise, signal_to_noise
from truecast.proof.reference import Reference
from truecast.proof.repeating import repeat_check, repeat_faults
from truecast.proof.sentences import Followed, followed
from truecast.proof.sessions import RUN_ERRORS, declared, open_module, open_saved, open_twin
from truecast.proof.shaken import rounds_to_codes, shaken
from truecast.proof.side_facts import side_checks
from truecast.proof.source.checks import loading_checks
from truecast.proof.static import kernel_check
from truecast.proof.tally import UNCOMPARED, UNREAD, Worst, attempts, broke, broken, check
from truecast.proof.weights import accounting_checks, hash_check, value_check
from truecast.trace.author import AuthorModule
from truecast.trace.opening import ModuleSource, open_author

TIER = "parity"
ACTIVATION_COSINE, FORMAT_COSINE = 0.99, 0.9
"""Least cosine of an output with the reference's, the mean over the grid. Activations: what embeddings are commonly
held to for retrieval. Format: against catastrophe only, since random tokens move an encoder further than text does."""
FORMAT_NAME, ACTIVATION_NAME = "price of the format", "price of the activations"

Progress = Callable[[str, int, int], None]
Outputs = Mapping[str, Array]


@dataclass
class _Way:
    """One way of running the graph, and what has been measured of it.

    `tight` follows the tight rule; others have `limit`, in parts of the largest value (None: only their cosines count).
    """

    name: str
    session: ort.InferenceSession
    tight: bool
    limit: float | None = None
    worst: dict[str, Worst] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    cosines: dict[str, Cosines] = field(default_factory=dict)
    format_cosines: dict[str, Cosines] = field(default_factory=dict)


@dataclass(frozen=True)
class _Case:
    """What is to be proven, opened."""

    folder: Path
    manifest: Manifest
    model: ir.Model
    author: AuthorModule
    reference: Reference
    weights: Mapping[str, HeldWeight]
    report: Progress
    steps: Followed

    @property
    def is_quantized(self) -> bool:
        return any(weight.quantization is not None for weight in self.weights.values())

    @property
    def keeps_values(self) -> bool:
        """Whether every weight has the values that the checkpoint has, so that its format costs nothing."""
        own = all(weight.quantization is None or weight.own for weight in self.weights.values())
        return own and self.half is None

    @property
    def half(self) -> Half | None:
        """The float of 16 bits that the graph computes in, if any."""
        return half_of(self.model, fallbacks=True)

    @property
    def leaves(self) -> int:
        """How many leaves of the module became operators: about the depth of the graph."""
        return sum(self.manifest.graph.lowered.values())

    def outputs(self, point: ModulePoint) -> Outputs:
        """The author's."""
        return self.reference.outputs(self.author, point.tensors)


def prove_module(
    folder: Path,
    source: ModuleSource,
    manifest: Manifest,
    *,
    progress: Progress | None = None,
) -> Certificate:
    """Compares the artifact in `folder` with the module that `source` names; a failed check is in the certificate.

    Raises InputError when the graph file or the source cannot be used at all.
    """
    report = progress or (lambda stage, done, total: None)
    report("open the source", 0, 1)
    author, checkpoint = open_author(source)
    steps = followed(author, checkpoint.path)
    author = steps.author
    model = load_graph(folder, manifest.graph.file)
    reference = Reference.of_module(author, checkpoint, source.trust_remote_code)
    author = replace(author, module=reference.model, mode=None)
    try:
        islands = half_of(model, fallbacks=True) is not None
        held = held_weights(model, manifest.weights, reference.sources, islands)
        weights = with_own(held, manifest, reference)
    except Exception as error:  # a graph may be wrong in any way
        return _certificate([broken("static", UNREAD, broke(error))], [], {})
    case = _Case(folder, manifest, model, author, reference, weights, report, steps)
    with reference.threads():
        checks = _static(case)
        if not any(check.name == "kernels" and check.passed for check in checks):
            return _certificate(checks, [], {})
        noise = signal_to_noise(reference, weights, reference.sources) if case.is_quantized else {}
        run, notes = _to_its_end(case, source)
        sides, said = side_checks(folder, checkpoint, manifest)
    return _certificate([*checks, *sides, *run], [*notes, *said], noise)


def _certificate(checks: Sequence[Check], notes: Sequence[str], noise: Noise) -> Certificate:
    status = Status.PROVEN if all(check.passed for check in checks) else Status.FAILED
    return Certificate(
        status=status, environment=environment(), checks=list(checks), notes=list(notes), signal_to_noise=noise
    )


def _static(case: _Case) -> list[Check]:
    """Tier 1: every check that runs no module."""
    model, manifest, reference, weights = case.model, case.manifest, case.reference, case.weights
    half, source = case.half, partial(case.report, "check the source")
    elsewhere, file = half is not None and half.providers, manifest.graph.file

    def values() -> list[Check]:
        return [value_check(reference, weights, partial(case.report, "check weights"))[0]]

    return attempts(
        "static",
        {
            "graph": lambda: module_graph_checks(model, manifest, case.author),
            "16 bits": lambda: [] if half is None else half_checks(case.folder, model, manifest, half),
            "kernels": lambda: [
                table_check(model, half) if half and elsewhere else kernel_check(case.folder, model, file)
            ],
            "accounting": lambda: accounting_checks(model, manifest, reference, weights),
            "hashes": lambda: [hash_check(model, manifest)],
            "kind of artifact": lambda: [claims_check(model, manifest, weights)],
            "quantization": lambda: quantization_checks(model, manifest, weights, reference.sources.tied),
            "weights": values,
            "source": lambda: loading_checks(reference, manifest, weights, reference.sources, source),
        },
    )


def _to_its_end(case: _Case, source: ModuleSource) -> tuple[list[Check], list[str]]:
    """`_run`, of which what it cannot deal with is a failed check as well."""
    try:
        return _run(case, source)
    except InputError:
        raise
    except Exception as error:  # whatever a wrong graph makes of ONNX Runtime, NumPy or our own code
        return [broken(TIER, UNCOMPARED, broke(error))], []


def _run(case: _Case, source: ModuleSource) -> tuple[list[Check], list[str]]:
    """Tier 2: checks, and notes on the points that were left out."""
    taken, refused = _taken(case)
    points, original = [point for point, _ in taken], [outputs for _, outputs in taken]
    again = (case.outputs(point) for point in points)
    repeats = zip(points, original, again, strict=True)
    faults = [fault for point, first, second in repeats for fault in repeat_faults(point.name, first, second)]
    case.report("open the graph", 0, 1)
    checks = [repeat_check(faults, case.reference, len(points))]
    checks += attempts("static", {"formulas": lambda: [_formulas(case, points[0])]})
    checks += case.steps.check(TIER)
    if not case.keeps_values:
        case.reference.load_held(case.weights)
    try:
        ways = _ways(case)
    except InputError as error:
        return [*checks, broken(TIER, "the runtime opens the graph", str(error))], refused
    torch_half = None if case.half is None else TorchHalf.open(source, case.half, case.weights, case.leaves)
    case.report("compare", 0, len(points))
    for index, point in enumerate(points):
        want = original[index] if case.keeps_values else case.outputs(point)
        for way in ways:
            got = _compare(way, case, point, want, None if case.keeps_values else original[index])
            if way.name == TWIN and torch_half is not None:
                torch_half.add(point, want, got)
        case.report("compare", index + 1, len(points))
    against = "the original" if case.keeps_values else "the original with these weights"
    checks += [c for way in ways for c in _way_checks(way, against)]
    if case.half is not None and torch_half is not None:
        checks += [_rounding(case, case.half, points[0]), *torch_half.checks()]
        refused = [*refused, *torch_half.notes()]
    if not ways[-1].tight and ways[-1].limit is None:
        checks += _cosine_checks(ACTIVATION_NAME, ways[-1].cosines, ACTIVATION_COSINE)
    if not case.keeps_values:
        checks += _cosine_checks(FORMAT_NAME, ways[-1].format_cosines, FORMAT_COSINE)
    return checks, [*refused, *case.reference.fresh.notes()]


def _formulas(case: _Case, point: ModulePoint) -> Check:
    return module_formulas(case.model, case.reference, lambda: case.outputs(point))


def _ways(case: _Case) -> list[_Way]:
    """The ways of running the graph, the one that users run last."""
    folder, info, keeps = case.folder, case.manifest.graph, case.keeps_values
    if case.is_quantized:
        exact = _Way("exact products", open_module(folder, info, exact=True), True)
        return [exact, _Way("as shipped", open_module(folder, info), False)]
    if case.half is not None:
        return _half_ways(case, case.half)
    limit = half_limit(case.leaves) if not keeps else None
    shipped = _Way("as shipped", open_module(folder, info), keeps, limit)
    saved = [_Way("as saved", open_saved(folder, info), keeps, limit)] if (folder / SAVED_NAME).is_file() else []
    plain = [_Way("without optimization", open_module(folder, info, optimize=False), keeps, limit)] if keeps else []
    return [*plain, *saved, shipped]


def _half_ways(case: _Case, half: Half) -> list[_Way]:
    """The twin, and where the processor takes the graph, what users run, last."""
    folder, info, limit = case.folder, case.manifest.graph, half_limit(case.leaves, half.epsilon)
    twin = _Way(TWIN, open_twin(folder, info, half)[0], False, limit)
    if half.providers:
        return [twin]
    saved = [_Way("as saved", open_saved(folder, info), False, limit)] if (folder / SAVED_NAME).is_file() else []
    return [twin, *saved, _Way("as shipped", open_module(folder, info), False, limit)]


def _rounding(case: _Case, half: Half, point: ModulePoint) -> Check:
    try:
        return rounding_check(case.folder, case.manifest.graph, half, _feeds(case, point))
    except RUN_ERRORS as error:
        return broken(TIER, "the twin rounds every result", str(error).strip().splitlines()[0])


def _feeds(case: _Case, point: ModulePoint) -> dict[str, Array]:
    return {spec.name: tensor.numpy() for spec, tensor in zip(case.author.inputs, point.tensors, strict=True)}


def _taken(case: _Case) -> tuple[list[tuple[ModulePoint, Outputs]], list[str]]:
    """The points that the author's module takes, with what it gives there with its checkpoint's weights, and a note for
    each of the others."""
    case.reference.load_checkpoint()
    grid = module_grid(case.author)
    points, refused = [], list(grid.notes)
    for index, point in enumerate(grid.points):
        case.report("run the original", index, len(grid.points))
        try:
            outputs = case.outputs(point)
        except (RuntimeError, IndexError, ValueError) as error:
            refused.append(f"The module itself does not take {point.name}: {str(error).splitlines()[0]}.")
        else:
            points.append((point, outputs))
    if not points:
        raise InputError(f"The module takes no point of the grid: {refused[-1]}")
    return points, refused


def _compare(way: _Way, case: _Case, point: ModulePoint, want: Outputs, original: Outputs | None) -> Outputs:
    """Runs a way at a point and notes how it compares; returns its outputs, none where it does not run."""
    names = [value.name for value in way.session.get_outputs()]
    try:
        got = way.session.run(None, declared(way.session, _feeds(case, point)))
    except RUN_ERRORS as error:
        way.faults.append(f"{point.name}: {str(error).strip().splitlines()[0]}")
        return {}
    for name, value in zip(names, got, strict=True):
        if name not in want:
            way.faults.append(f"{point.name}: {name} is no output of the author's, which are {', '.join(want)}")
            continue
        expected = want[name]
        if value.shape != expected.shape:
            way.faults.append(f"{point.name}: {name} has the shape {value.shape} instead of {expected.shape}")
            continue
        _take(way, case, point, name, np.asarray(value), expected)
        if original is not None:
            way.format_cosines.setdefault(name, Cosines()).add(np.asarray(value), original[name])
    return dict(zip(names, map(np.asarray, got), strict=True))


def _take(way: _Way, case: _Case, point: ModulePoint, name: str, got: Array, want: Array) -> None:
    got, want = got.astype(np.float64), want.astype(np.float64)
    odd = ~np.isfinite(want)
    if not np.array_equal(got[odd], want[odd], equal_nan=True) or not np.isfinite(got[~odd]).all():
        way.faults.append(f"{point.name}: {name} has NaN or infinity where the author's has none")
        return
    if not got[~odd].size:
        return
    error, scale = float(np.abs(got[~odd] - want[~odd]).max()), float(np.abs(want[~odd]).max()) or 1.0
    limit = way.limit if way.limit is not None else RELATIVE
    if way.tight and not error <= RELATIVE * scale:
        noise = np.abs(_in_float64(case, point)[name].astype(np.float64) - want)[~odd].max()
        limit = max(RELATIVE, NOISE_FACTOR * float(noise) / scale)
    way.worst.setdefault(name, Worst()).add(error / scale, limit, point.name)
    if not way.tight:
        way.cosines.setdefault(name, Cosines()).add(got, want)


def _in_float64(case: _Case, point: ModulePoint) -> Outputs:
    if rounds_to_codes(case.author.module):
        return shaken(case.reference, case.author, point.tensors)
    wide = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in point.tensors)
    try:
        with case.reference.in_float64():
            return case.reference.outputs(case.author, wide)
    except (RuntimeError, AssertionError):  # torch's fake quantization takes float32 alone, and says it either way
        return shaken(case.reference, case.author, point.tensors)


def _way_checks(way: _Way, against: str) -> Iterator[Check]:
    if way.faults:
        more = f" and {len(way.faults) - 1} more" if len(way.faults) > 1 else ""
        yield broken(TIER, f"{way.name} runs", f"{way.faults[0]}{more}")
    if not way.tight and way.limit is None:
        return
    for name, worst in sorted(way.worst.items()):
        detail = f"worst at {worst.where}; {worst.count} points compared"
        title = f"{way.name} against {against}, {name}"
        yield check(TIER, title, worst.value, worst.limit, "of the largest value", detail)


def _cosine_checks(what: str, cosines: Mapping[str, Cosines], limit: float) -> Iterator[Check]:
    if not cosines:
        yield broken(TIER, f"{what}, cosine", "nothing could be measured")
    for name, gathered in sorted(cosines.items()):
        values = gathered.values()
        detail = f"{len(values)} vectors, the least {values.min():.5f}" if len(values) else "no vectors"
        mean = float(values.mean()) if len(values) else float("nan")
        yield check(TIER, f"{what}, mean cosine of {name}", mean, limit, "", detail, at_least=True)
