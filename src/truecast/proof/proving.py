"""The proof as a whole: every tier in order, the certificate at the end.

Data flow: graph and weights are checked as they lie (tier 1) → the author's model is built, once, and takes the
checkpoint's weights, then those the artifact holds → logits at every point of the grid (tier 2) → greedy texts (tier 4)
→ where a check failed, bisection says where and why → `Certificate`.

A check that fails does not stop the proof: the certificate lists all of them. Only a graph that ONNX Runtime does not
load does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import onnx_ir as ir
import torch

from truecast.artifact import Certificate, Check, Manifest, Status
from truecast.calibration.libraries import CALIBRATED, FOLDING
from truecast.checkpoint.model import Checkpoint
from truecast.errors import InputError
from truecast.measure.environment import environment
from truecast.proof.bisect import located
from truecast.proof.cache import cache_checks
from truecast.proof.claims import cache_bits_of, claims_check, half_of, is_librarys, with_own
from truecast.proof.ending import ending_checks, ending_note
from truecast.proof.expert_kernels import expert_checks
from truecast.proof.formulas import decoder_formulas
from truecast.proof.generation import (
    LONG_NEW,
    generated,
    generation_check,
    new_tokens,
    shipped_check,
    story_of,
)
from truecast.proof.held import HeldWeight, held_weights, load_graph
from truecast.proof.integer_checks import asked_weights, quantization_checks
from truecast.proof.operators import Array
from truecast.proof.parity import (
    ACTIVATION_KL,
    ACTIVATION_TOP1,
    CACHE_KL,
    CACHE_TOP1,
    FORMAT_KL,
    GRID_KL,
    HALF_KL,
    HALF_TOP1,
    POINT_KL,
    Subject,
    compare_all,
    half_limit,
    parity_checks,
    price_checks,
    reference_logits,
)
from truecast.proof.points import Limits, Point, config_thresholds, config_windows, far, grid, stretches
from truecast.proof.products import Products, takes_int8
from truecast.proof.prompts import long_prompt, prompt_tokens, text_tokens
from truecast.proof.quality import Noise, likeness_check, original_logits, signal_to_noise, text_points, text_price
from truecast.proof.reference import Reference
from truecast.proof.repeating import repeated_decoder
from truecast.proof.sessions import open_decoder
from truecast.proof.side_facts import side_checks
from truecast.proof.source.checks import loading_checks
from truecast.proof.static import graph_checks, kernel_check
from truecast.proof.tables import table_checks
from truecast.proof.tally import UNCOMPARED, UNREAD, attempts, broke, broken
from truecast.proof.variants import variant_checks
from truecast.proof.weights import Fault, accounting_checks, hash_check, value_check
from truecast.targets.side_files import context_length
from truecast.weights.sources import Sources

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, the amount done and the amount in all."""

VARIANT_POINTS = ("left padding", "right padding")
"""Points that serve the variants: the first one that the padding contract allows."""

RANDOM_TOKENS = 10.0
"""How many times further random tokens move the logits than text does; see `GRID_KL`."""
LIBRARY_NOTE = (
    "A library made the weights from calibration text, and its own checkpoint, which they were compared with when the "
    "artifact was made, is not kept: now their hashes were compared, and how far they are from the source's."
)


@dataclass(frozen=True)
class _Case:
    """What is to be proven, opened. `floats` finds the weights that the price of the format is measured against."""

    folder: Path
    manifest: Manifest
    model: ir.Model
    reference: Reference
    weights: Mapping[str, HeldWeight]
    floats: Sources
    texts: tuple[str, ...]
    report: Progress

    @property
    def is_float32(self) -> bool:
        return self.manifest.precision == "fp32" and not self.is_quantized and not self.is_half

    @property
    def keeps_values(self) -> bool:
        """Whether every weight has the values that the checkpoint has, so that its format costs nothing."""
        made_here = any(weight.quantization is not None and not weight.own for weight in self.weights.values())
        same = self.floats is self.reference.sources and not self.is_library_made
        return not self.is_half and not made_here and same

    @property
    def is_half(self) -> bool:
        """Whether the graph computes in float16."""
        return half_of(self.model) is not None

    @property
    def is_all_held(self) -> bool:
        """Whether nothing of the checkpoint is compared with, or needed, beside what the artifact holds."""
        held = (self.reference.held(name, self.weights) is not None for name in self.reference.parameters)
        return self.keeps_values and not self.is_float32 and not self.texts and all(held)

    @property
    def is_library_made(self) -> bool:
        """Whether a library made the weights, and its own checkpoint is not there to compare with."""
        return self.manifest.settings.get("method") in CALIBRATED and self.floats is self.reference.sources

    @property
    def known_weights(self) -> Mapping[str, HeldWeight]:
        """The weights whose values follow from the checkpoint: all but those that a library made."""
        if not self.is_library_made:
            return self.weights
        folded = self.manifest.settings.get("method") in FOLDING
        known = {name: w for name, w in self.weights.items() if not is_librarys(w, self.model)}
        return {name: w for name, w in known.items() if w.quantization is not None or not folded}

    def noise(self) -> Noise:
        """The signal-to-noise ratio of every weight; nothing for methods that fold scales into other weights."""
        if self.manifest.settings.get("method") in FOLDING:
            return {}
        return signal_to_noise(self.reference, self.weights, self.floats, self.stage("measure noise"))

    @property
    def is_quantized(self) -> bool:
        return any(weight.quantization is not None for weight in self.weights.values())

    @property
    def cache_bits(self) -> int | None:
        """Bits of a code of the cache; None for floats."""
        return cache_bits_of(self.model)

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
    case = _Case(folder, manifest, model, reference, weights, floats, tuple(texts), report)
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


def _static(case: _Case, checkpoint: Checkpoint) -> tuple[list[Check], list[Fault]]:
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


def _to_its_end(case: _Case, checkpoint: Checkpoint) -> tuple[list[Check], list[str], list[tuple[Point, int]]]:
    """`_run`, of which what it cannot deal with is a failed check as well: a graph may be wrong in any way."""
    try:
        return _run(case, _limits(case, checkpoint))
    except InputError:
        raise
    except Exception as error:  # whatever a wrong graph makes of ONNX Runtime, NumPy or our own code
        return [broken("parity", UNCOMPARED, broke(error))], [], []


def _limits(case: _Case, checkpoint: Checkpoint) -> Limits:
    config, parameters = checkpoint.config, case.reference.parameters
    embedding: torch.Tensor = case.reference.model.get_input_embeddings().weight  # type: ignore[assignment]
    vocabulary = int(embedding.shape[0])
    attention = {
        node.attributes["local_window_size"].as_int()
        for node in case.model.graph
        if "local_window_size" in node.attributes
    }
    rotating = any("do_rotary" in node.attributes for node in case.model.graph)  # by a table, which ends
    windows = {*config_windows(config), *(window for window in attention if window > 1)}
    return Limits(
        padding=case.manifest.graph.padding,
        many_after_past=not any(node.op_type == "GroupQueryAttention" for node in case.model.graph),
        vocabulary=vocabulary,
        context=None if stretches(config) and not rotating else context_length(checkpoint),
        windows=tuple(sorted(windows)),
        thresholds=config_thresholds(config),
        restart=min(config_thresholds(config, ("longrope",)), default=None),
        weights=sum(p.numel() for p in parameters.values()) - embedding.numel(),
        heads=int(config.get("num_attention_heads") or config.get("n_head") or 1),
        texts=text_tokens(case.folder, vocabulary),
    )


def _run(case: _Case, limits: Limits) -> tuple[list[Check], list[str], list[tuple[Point, int]]]:
    """Tiers 2 and 4: checks, notes, and the points that failed, each with its first run that did."""
    points, notes = grid(limits)
    case.report("run the original", 0, 1)
    if not case.is_all_held:
        case.reference.load_checkpoint(case.floats)
    originals: dict[str, list[Array]] = {}
    if not case.keeps_values:
        originals = {p.name: list(reference_logits(case.reference, p)) for p in points if p.text}
    own = text_points(case.folder, case.texts, limits.vocabulary, limits.context) if case.texts else []
    own_logits = original_logits(case.reference, own)
    if not case.is_float32:
        case.reference.load_held(case.weights)
    case.report("check products", 0, 1)
    products = Products.of(case.model, [p.detach().numpy() for p in case.reference.parameters.values()])
    rounds = case.is_quantized and takes_int8(case.model, case.manifest.graph)
    checks = products.checks(case.folder, case.manifest.graph.file) if rounds else []
    checks += expert_checks(case.folder, case.manifest.graph.file) if rounds else []
    try:
        usual, cached, shipped = _subjects(case, products)
    except InputError as error:
        return [*checks, broken("parity", "the runtime opens the graph", str(error))], notes, []
    subjects = list({id(subject): subject for subject in (usual, cached, shipped)}.values())
    point = next((p for name in VARIANT_POINTS for p in points if p.name == name), points[0])
    wanted = {point.name: list(reference_logits(case.reference, point))}
    case.report("compare", 0, len(points))
    compare_all(case.reference, subjects, points, originals, case.stage("compare"), wanted)
    case.report("compare other ways", 0, 1)
    checks.append(repeated_decoder(case.reference, points, wanted))
    checks += [c for subject in subjects for c in parity_checks(subject, case.against)]
    checks += [*_prices(case, usual, cached, shipped), *text_price(shipped.decoder, own, own_logits)]
    checks += variant_checks(
        case.folder, case.manifest.graph, case.reference, usual, shipped, point, wanted[point.name], case.against
    )
    if case.cache_bits is not None:
        seen = [point, *(point for point in points if point.text)]  # padded rows that grow, and real text
        checks += cache_checks(case.folder, case.model, case.manifest, case.reference, case.texts, seen)
    case.report("generate", 0, 1)
    checks += _generation(case, limits, usual, shipped)
    case.report("run the end of the context", 0, 1)
    ending = ending_checks(case.reference, usual, limits.context, limits.vocabulary, far(limits))
    notes += ending_note(ending, limits.context, far(limits))
    checks += ending
    failed: dict[str, int] = {}
    for subject in subjects:
        failed |= subject.failed
    notes += case.reference.fresh.notes()
    if case.is_library_made:
        notes.append(LIBRARY_NOTE)
    if case.is_half:
        notes.append("float16 was run on the CPU provider, which casts what it has no kernel for to float32.")
    return checks, notes, [(p, failed[p.name]) for p in points if p.name in failed]


def _subjects(case: _Case, products: Products) -> tuple[Subject, Subject, Subject]:
    """The subject of the tight rule (float16: of the rule of its own), the one that shows what a quantized cache costs,
    and the graph as shipped; often they are the same.

    Exact products are those of `products`, whose kernels were checked, or of the graph as shipped if it takes floats.
    """
    folder, info, bits = case.folder, case.manifest.graph, case.cache_bits
    decoder = open_decoder(folder, info)
    tight = case.keeps_values
    limit = None if tight else half_limit(info.cache.layers if info.cache else 1)
    if bits is None and case.is_quantized:
        rounds = takes_int8(case.model, info)
        floats = open_decoder(folder, info, exact=True, products=products.put) if rounds else decoder
        exact = Subject("exact products", floats, tight=True)
        return exact, exact, Subject("as shipped", decoder, tight=False, priced=True)
    if bits is None:
        subject = Subject("as shipped", decoder, tight=tight, limit=limit, priced=not tight)
        return subject, subject, subject
    random_kl = RANDOM_TOKENS * CACHE_KL[bits]
    gated = replace(
        Subject("as shipped", decoder, tight=False, priced=True),
        grid_kl=max(GRID_KL, random_kl),
        point_kl=max(POINT_KL, random_kl),
    )
    if not case.is_quantized:
        floats = open_decoder(folder, info, floats=True)
        return Subject("float cache", floats, tight=tight, limit=limit, priced=not tight), gated, gated
    opened = partial(open_decoder, folder, info, exact=True, products=products.put)
    floats, codes = (opened(floats=undone) for undone in (True, False))
    usual = Subject("exact products, float cache", floats, tight=True)
    cached = Subject("exact products", codes, tight=False, priced=True)
    return usual, replace(cached, grid_kl=gated.grid_kl, point_kl=gated.point_kl), gated


def _prices(case: _Case, usual: Subject, cached: Subject, shipped: Subject) -> list[Check]:
    checks, bits = [], case.cache_bits
    if not case.keeps_values and not case.is_quantized:
        checks = price_checks("price of float16 arithmetic", usual.price, HALF_KL, HALF_TOP1)
    if bits is not None:
        checks += price_checks(f"price of the int{bits} cache", cached.price, CACHE_KL[bits], CACHE_TOP1[bits])
    if case.is_quantized and bits is None:
        checks += price_checks("price of the activations", shipped.price, ACTIVATION_KL, ACTIVATION_TOP1)
    elif case.is_quantized and bits is not None:
        top1 = None if CACHE_TOP1[bits] is None else ACTIVATION_TOP1
        name = f"price of the activations and the int{bits} cache"
        checks += price_checks(name, shipped.price, ACTIVATION_KL + CACHE_KL[bits], top1)
    if case.keeps_values:
        return checks
    return [*checks, *price_checks("price of the format", shipped.format_price, FORMAT_KL, None)]


def _generation(case: _Case, limits: Limits, usual: Subject, shipped: Subject) -> list[Check]:
    prompts, _ = prompt_tokens(case.folder, limits.vocabulary)
    if limits.context is not None:
        prompts = [prompt[: max(1, limits.context - 1)] for prompt in prompts]
    count = new_tokens(prompts, limits.context)
    tokens = generated(usual.decoder, prompts, count)
    by_length, behind = bool(limits.thresholds), limits.restart
    story = story_of(case.reference, prompts, tokens, count, by_length, case.stage("generate"), behind)
    name = f"greedy tokens against {case.against}"
    checks = [generation_check(tokens, story, usual.error, f"{usual.name}, {name}")]
    if prompt := long_prompt(limits.texts, limits.vocabulary, limits.context):
        text = generated(usual.decoder, [prompt], LONG_NEW)
        told = story_of(case.reference, [prompt], text, LONG_NEW, by_length, case.stage("generate"), behind)
        checks.append(generation_check(text, told, usual.error, f"{usual.name}, {name}, behind a long text"))
    if shipped.decoder is not usual.decoder:
        as_shipped = generated(shipped.decoder, prompts, count)
        checks.append(shipped_check(as_shipped, story, f"{shipped.name}, {name}"))
    return checks
