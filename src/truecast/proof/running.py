"""Tiers 2 and 4 of a decoder: every check that runs the graph beside the author's model.

Data flow: limits of the model → points of the grid → the author's logits, with the checkpoint's weights for the price
of the format and with the artifact's for everything else → each way to run the graph compared at every point → greedy
texts → the end of the context.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from truecast.artifact import Check
from truecast.checkpoint.model import Checkpoint
from truecast.errors import InputError
from truecast.proof.cache import cache_checks
from truecast.proof.case import Case
from truecast.proof.ending import ending_checks, ending_note
from truecast.proof.expert_kernels import expert_checks
from truecast.proof.generation import (
    LONG_NEW,
    generated,
    generation_check,
    new_tokens,
    shipped_check,
    story_of,
)
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
from truecast.proof.quality import original_logits, text_points, text_price
from truecast.proof.repeating import repeated_decoder
from truecast.proof.sessions import open_decoder
from truecast.proof.tally import broken
from truecast.proof.variants import variant_checks
from truecast.targets.side_files import context_length

VARIANT_POINTS = ("left padding", "right padding")
"""Points that serve the variants: the first one that the padding contract allows."""

RANDOM_TOKENS = 10.0
"""How many times further random tokens move the logits than text does; see `GRID_KL`."""
LIBRARY_NOTE = (
    "A library made the weights from calibration text, and its own checkpoint, which they were compared with when the "
    "artifact was made, is not kept: now their hashes were compared, and how far they are from the source's."
)


def run_checks(case: Case, limits: Limits) -> tuple[list[Check], list[str], list[tuple[Point, int]]]:
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


def _subjects(case: Case, products: Products) -> tuple[Subject, Subject, Subject]:
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


def _prices(case: Case, usual: Subject, cached: Subject, shipped: Subject) -> list[Check]:
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


def _generation(case: Case, limits: Limits, usual: Subject, shipped: Subject) -> list[Check]:
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


def limits_of(case: Case, checkpoint: Checkpoint) -> Limits:
    """What decides the points of this artifact's grid."""
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
