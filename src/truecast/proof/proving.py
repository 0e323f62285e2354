"""The proof as a whole: every tier in order, the certificate at the end.

Data flow: graph and weights are checked as they lie (tier 1) → the author's model is built, once, and takes the
checkpoint's weights, then those the artifact holds → logits at every point of the grid (tier 2) → greedy texts (tier 4)
→ where a check failed, bisection says where and why → `Certificate`.

A check that fails does not stop the proof: the certificate lists all of them. Only a graph that ONNX Runtime does not
load does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from truecast.artifact import Certificate, Check, Manifest, Status
from truecast.checkpoint.model import Checkpoint
from truecast.errors import InputError
from truecast.proof.bisect import bisect
from truecast.proof.environment import environment
from truecast.proof.generation import author_story, generation_check, new_tokens, shipped_check
from truecast.proof.held import HeldWeight, held_weights, load_graph
from truecast.proof.operators import Array
from truecast.proof.parity import (
    ACTIVATION_KL,
    ACTIVATION_TOP1,
    FORMAT_KL,
    HALF_KL,
    HALF_TOP1,
    Subject,
    compare_all,
    half_limit,
    parity_checks,
    price_checks,
    reference_logits,
)
from truecast.proof.points import Limits, Point, config_thresholds, config_windows, grid, stretches
from truecast.proof.prompts import prompt_tokens, text_tokens
from truecast.proof.reference import Reference
from truecast.proof.sessions import open_decoder
from truecast.proof.static import graph_checks, kernel_check
from truecast.proof.tables import table_checks
from truecast.proof.tally import broken
from truecast.proof.variants import variant_checks
from truecast.proof.weights import Fault, accounting_checks, hash_check, value_check
from truecast.runtime.processors import default_threads

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, the amount done and the amount in all."""

SMALL_MODEL = 10_000_000
"""Weights below which one thread of torch is the fastest: its threads wait for each other longer than they compute."""
BISECTED_POINTS = 3
"""Failing points that a bisection looks at, in the order of the grid."""
VARIANT_POINTS = ("left padding", "right padding")
"""Points that serve the variants: the first one that the padding contract allows."""


@dataclass(frozen=True)
class _Case:
    """What is to be proven, opened."""

    folder: Path
    manifest: Manifest
    model: ir.Model
    reference: Reference
    weights: Mapping[str, HeldWeight]
    report: Progress

    @property
    def is_float32(self) -> bool:
        return self.manifest.precision == "fp32"

    @property
    def is_quantized(self) -> bool:
        return any(weight.quantization is not None for weight in self.weights.values())

    @property
    def against(self) -> str:
        """What the tight rule compares with, for the names of checks."""
        return "the original" if self.is_float32 else "the original with these weights"

    def stage(self, name: str) -> Callable[[int, int], None]:
        """A progress function of one stage."""
        return lambda done, total: self.report(name, done, total)


def prove(
    folder: Path,
    checkpoint: Checkpoint,
    manifest: Manifest,
    *,
    progress: Progress | None = None,
    trust_remote_code: bool = False,
) -> Certificate:
    """Compares the artifact in `folder` with the model of `checkpoint`; a failed check is in the certificate.

    Args:
        folder: holds the graph, its data file and the tokenizer; truecast.json need not be there yet.
        checkpoint: what the artifact was made from.
        manifest: what the artifact says of itself.
        progress: called with stage, done and total.
        trust_remote_code: whether code that comes with the checkpoint may run.

    Raises:
        InputError: the graph file or the checkpoint cannot be used at all.
    """
    report = progress or (lambda stage, done, total: None)
    model = load_graph(folder, manifest.graph.file)
    reference = Reference.build(checkpoint, trust_remote_code)
    weights = held_weights(model, manifest.weights, reference.sources)
    case = _Case(folder, manifest, model, reference, weights, report)
    with _threads(reference):
        checks, faults = _static(case, checkpoint.config)
        if not next(check for check in checks if check.name == "kernels").passed:
            return _certificate(checks, [])
        run, notes, failed = _run(case, _limits(case, checkpoint.config))
        checks += run
        if failed or faults:
            notes = [_located(case, failed, faults), *notes]
    return _certificate(checks, notes)


def _certificate(checks: list[Check], notes: Sequence[str]) -> Certificate:
    status = Status.PROVEN if all(check.passed for check in checks) else Status.FAILED
    return Certificate(status=status, environment=environment(), checks=checks, notes=list(notes))


@contextmanager
def _threads(reference: Reference) -> Iterator[None]:
    before = torch.get_num_threads()
    size = sum(parameter.numel() for parameter in reference.parameters.values())
    torch.set_num_threads(1 if size < SMALL_MODEL else default_threads())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _static(case: _Case, config: Mapping[str, Any]) -> tuple[list[Check], list[Fault]]:
    """Tier 1: every check that runs no model, and the weights that are wrong."""
    manifest, model = case.manifest, case.model
    values, faults = value_check(case.reference, case.weights, case.stage("check weights"))
    checks = [
        *graph_checks(model, manifest, config),
        kernel_check(case.folder, model, manifest.graph.file),
        *accounting_checks(model, manifest, case.reference, case.weights),
        hash_check(model, manifest),
        values,
        *table_checks(model, manifest, case.reference),
    ]
    return checks, faults


def _limits(case: _Case, config: Mapping[str, Any]) -> Limits:
    info, parameters = case.manifest.graph, case.reference.parameters
    embedding: torch.Tensor = case.reference.model.get_input_embeddings().weight  # type: ignore[assignment]
    vocabulary = info.vocab_size or int(embedding.shape[0])
    attention = {
        node.attributes["local_window_size"].as_int()
        for node in case.model.graph
        if "local_window_size" in node.attributes
    }
    rotating = any("do_rotary" in node.attributes for node in case.model.graph)  # by a table, which ends
    windows = {*config_windows(config), *(window for window in attention if window > 1)}
    return Limits(
        padding=info.padding,
        many_after_past=not any(node.op_type == "GroupQueryAttention" for node in case.model.graph),
        vocabulary=vocabulary,
        context=None if stretches(config) and not rotating else info.context_length,
        windows=tuple(sorted(windows)),
        thresholds=config_thresholds(config),
        weights=sum(p.numel() for p in parameters.values()) - embedding.numel(),
        heads=int(config.get("num_attention_heads") or config.get("n_head") or 1),
        texts=text_tokens(case.folder, vocabulary),
    )


def _run(case: _Case, limits: Limits) -> tuple[list[Check], list[str], list[Point]]:
    """Tiers 2 and 4: checks, notes, and the points that failed."""
    points, notes = grid(limits)
    case.reference.load_checkpoint()
    originals: dict[str, list[Array]] = {}
    if not case.is_float32:
        originals = {p.name: list(reference_logits(case.reference, p)) for p in points if p.text}
        case.reference.load_held(case.weights)
    try:
        usual, shipped = _subjects(case)
    except InputError as error:
        return [broken("parity", "the runtime opens the graph", str(error))], notes, []
    subjects = [usual] if usual is shipped else [usual, shipped]
    compare_all(case.reference, subjects, points, originals, case.stage("compare"))
    checks = [c for subject in subjects for c in parity_checks(subject, case.against)]
    checks += _prices(case, shipped)
    point = next(p for name in VARIANT_POINTS for p in points if p.name == name)
    checks += variant_checks(case.folder, case.manifest.graph, case.reference, usual, shipped, point, case.against)
    checks += _generation(case, limits, usual, shipped)
    failed = set(usual.failed) | set(shipped.failed)
    if case.manifest.precision == "fp16":
        notes.append("float16 was run on the CPU provider, which casts what it has no kernel for to float32.")
    return checks, notes, [p for p in points if p.name in failed]


def _subjects(case: _Case) -> tuple[Subject, Subject]:
    """The subject of the tight rule (float16: of the rule of its own), and the graph as shipped; often the same."""
    folder, info = case.folder, case.manifest.graph
    decoder = open_decoder(folder, info)
    if case.is_quantized:
        exact = Subject("exact products", open_decoder(folder, info, exact=True), tight=True)
        return exact, Subject("as shipped", decoder, tight=False, priced=True)
    limit = None if case.is_float32 else half_limit(info.cache.layers if info.cache else 1)
    subject = Subject("as shipped", decoder, tight=case.is_float32, limit=limit, priced=not case.is_float32)
    return subject, subject


def _prices(case: _Case, shipped: Subject) -> list[Check]:
    if case.is_float32:
        return []
    limits = (ACTIVATION_KL, ACTIVATION_TOP1) if case.is_quantized else (HALF_KL, HALF_TOP1)
    what = "price of the activations" if case.is_quantized else "price of float16 arithmetic"
    return [
        *price_checks(what, shipped.price, *limits),
        *price_checks("price of the format", shipped.format_price, FORMAT_KL, None),
    ]


def _generation(case: _Case, limits: Limits, usual: Subject, shipped: Subject) -> list[Check]:
    prompts, _ = prompt_tokens(case.folder, limits.vocabulary)
    if limits.context is not None:
        prompts = [prompt[: max(1, limits.context - 1)] for prompt in prompts]
    count = new_tokens(prompts, limits.context)
    story = author_story(case.reference, prompts, count, case.stage("generate"))
    name = f"greedy tokens against {case.against}"
    checks = [generation_check(usual.decoder, story, usual.error, f"{usual.name}, {name}")]
    if shipped is not usual:
        checks.append(shipped_check(shipped.decoder, story, f"{shipped.name}, {name}"))
    return checks


def _located(case: _Case, failed: Sequence[Point], faults: Sequence[Fault]) -> str:
    """What bisection says of a failed proof, in one sentence."""
    case.report("bisect", 0, 1)
    found = bisect(case.folder, case.reference, case.manifest, failed[:BISECTED_POINTS], faults)
    case.report("bisect", 1, 1)
    if found is not None:
        return str(found)
    return (
        "Bisection found every piece of the graph sound on the author's own numbers; the error builds up between them."
    )
