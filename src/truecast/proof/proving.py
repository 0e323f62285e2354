"""The proof as a whole: every tier in order, the certificate at the end.

Data flow: graph and weights are checked as they lie (tier 1) → the author's model is built, once, and takes the
checkpoint's weights, then those the artifact holds → logits at every point of the grid (tier 2) → greedy texts (tier 4)
→ where a check failed, bisection says where and why → `Certificate`.

A check that fails does not stop the proof: the certificate lists all of them. Only a graph that ONNX Runtime does not
load does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from truecast.artifact import Certificate, Check, Manifest, Status
from truecast.checkpoint.model import Checkpoint
from truecast.errors import InputError
from truecast.measure.environment import environment
from truecast.proof.bisect import located
from truecast.proof.case import Case, Progress
from truecast.proof.claims import claims_check, with_own
from truecast.proof.formulas import decoder_formulas
from truecast.proof.held import held_weights, load_graph
from truecast.proof.integer_checks import asked_weights, quantization_checks
from truecast.proof.points import Point
from truecast.proof.quality import Noise, likeness_check
from truecast.proof.reference import Reference
from truecast.proof.running import limits_of, run_checks
from truecast.proof.side_facts import side_checks
from truecast.proof.source.checks import loading_checks
from truecast.proof.static import graph_checks, kernel_check
from truecast.proof.tables import table_checks
from truecast.proof.tally import UNCOMPARED, UNREAD, attempts, broke, broken
from truecast.proof.weights import Fault, accounting_checks, hash_check, value_check
from truecast.targets.side_files import context_length


def prove(
    folder: Path,
    checkpoint: Checkpoint,
    manifest: Manifest,
    *,
    progress: Progress | None = None,
    trust_remote_code: bool = False,
    texts: Sequence[str] = (),
    original: Checkpoint | None = None,
) -> Certificate:
    """Compares the artifact in `folder` with the model of `checkpoint`; a failed check is in the certificate.

    Args:
        folder: holds the graph, its data file and the tokenizer; truecast.json need not be there yet.
        checkpoint: what the artifact was made from.
        manifest: what the artifact says of itself.
        progress: called with stage, done and total.
        trust_remote_code: whether code that comes with the checkpoint may run.
        texts: what the price of the format is measured on, beside the proof's own texts.
        original: the floats that `checkpoint` was quantized from, which that price is measured against.

    Raises:
        InputError: the graph file or the checkpoint cannot be used at all, or texts lack a tokenizer.
    """
    report = progress or (lambda stage, done, total: None)
    report("open the source", 0, 1)
    model = load_graph(folder, manifest.graph.file)
    reference = Reference.build(checkpoint, trust_remote_code, original)
    floats = reference.sources if original is None else replace(reference.sources, checkpoint=original)
    try:
        weights = with_own(held_weights(model, manifest.weights, reference.sources), manifest, reference)
    except Exception as error:  # a graph may be wrong in any way
        return _certificate([broken("static", UNREAD, broke(error))], [], {})
    case = Case(folder, manifest, model, reference, weights, floats, tuple(texts), report)
    with reference.threads():
        checks, faults = _static(case, checkpoint)
        if not any(check.name == "kernels" and check.passed for check in checks):
            return _certificate(checks, [], {})
        noise = {} if case.keeps_values else case.noise()
        checks += [likeness_check(noise)] if noise and case.is_library_made else []
        sides, said = side_checks(folder, original or checkpoint, manifest)
        checks += sides
        run, notes, failed = _to_its_end(case, checkpoint)
        checks += run
        if failed or faults:
            notes = [located(folder, reference, manifest, failed, faults, case.stage("bisect")), *notes]
    return _certificate(checks, [*notes, *said], noise)


def _certificate(checks: list[Check], notes: Sequence[str], noise: Noise) -> Certificate:
    status = Status.PROVEN if all(check.passed for check in checks) else Status.FAILED
    return Certificate(
        status=status, environment=environment(), checks=checks, notes=list(notes), signal_to_noise=noise
    )


def _static(case: Case, checkpoint: Checkpoint) -> tuple[list[Check], list[Fault]]:
    """Tier 1: every check that runs no model, and the weights that are wrong."""
    manifest, model = case.manifest, case.model
    reference, weights = case.reference, case.weights
    faults: list[Fault] = []

    def values() -> Iterator[Check]:
        check, found = value_check(reference, case.known_weights, case.stage("check weights"))
        faults.extend(found)
        yield check

    asked, source = asked_weights(reference.model, weights), case.stage("check the source")
    checks = attempts(
        "static",
        {
            "graph": lambda: graph_checks(model, manifest, checkpoint.config),
            "kind of artifact": lambda: [claims_check(model, manifest, weights, decoder=True)],
            "quantization": lambda: quantization_checks(model, manifest, asked, reference.sources.tied),
            "kernels": lambda: [kernel_check(case.folder, model, manifest.graph.file)],
            "accounting": lambda: accounting_checks(model, manifest, reference, weights),
            "hashes": lambda: [hash_check(model, manifest)],
            "weights": values,
            "source": lambda: loading_checks(reference, manifest, weights, case.floats, source),
            "tables": lambda: table_checks(model, manifest, reference),
            "formulas": lambda: [decoder_formulas(model, reference, context_length(checkpoint))],
        },
    )
    return checks, faults


def _to_its_end(case: Case, checkpoint: Checkpoint) -> tuple[list[Check], list[str], list[tuple[Point, int]]]:
    """`run_checks`, of which what it cannot deal with is a failed check as well: a graph may be wrong in any way."""
    try:
        return run_checks(case, limits_of(case, checkpoint))
    except InputError:
        raise
    except Exception as error:  # whatever a wrong graph makes of ONNX Runtime, NumPy or our own code
        return [broken("parity", UNCOMPARED, broke(error))], [], []
