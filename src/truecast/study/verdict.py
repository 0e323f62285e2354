"""The conclusion in plain words, with the numbers: which variant to use, or not to use ONNX at all.

A variant is acceptable when no labelled output loses more accuracy, macro F1 or rank correlation than the plan allows,
every output without labels keeps the plan's cosine to float32 on the mean, and nothing is NaN or Inf. Among those the
fastest counts, and ONNX has to beat the fastest acceptable PyTorch by more than the clock's noise.
"""

from __future__ import annotations

from collections.abc import Sequence

from truecast.study.plan import Accept
from truecast.study.results import Head, Row, Verdict, speed_ratio

NOISE = 0.05
"""Medians on a shared machine differ by this much from run to run; a smaller gain is no reason to change anything."""
UNDECIDED = 0.25
"""Where PyTorch in float32 itself changed by more than this, a difference within that change decides nothing."""
VOID = 0.5
"""Where it changed by more than this, the variants between its two measurements met different machines: no ratio of
theirs means anything, however large."""
MOST_REASONS = 6
"""Failed variants that are named one by one."""


def judge(rows: Sequence[Row], accept: Accept, drift: float | None) -> Verdict:
    """The verdict over all rows, of which the first is PyTorch in float32."""
    reference = rows[0]
    noise = clock_noise(drift)
    if drift is not None and noise > VOID:
        return Verdict(use_onnx=False, choice="", void=True, sentence=_void(drift), reasons=tuple(_failed(rows)))
    fine = [row for row in rows if row.measured and not losses(row, reference, accept)]
    ours = [row for row in rows[1:] if row.variant.kind != "torch"]
    best_torch = max((row for row in fine if row.variant.kind == "torch"), key=lambda row: _ratio(row, reference))
    candidates = [row for row in ours if row in fine]
    best = max(candidates, key=lambda row: _ratio(row, reference), default=None)
    supporting = (*_lossy(ours, reference, accept, best), *_failed(rows), *_caveats(rows, drift, noise))
    if best is None:
        sentence = f"Do not use ONNX for this model on this hardware: {_why_none(ours, reference, accept)}"
        return _kept(best_torch, reference, sentence, supporting)
    gain = _ratio(best, reference) / _ratio(best_torch, reference)
    if noise > UNDECIDED and 1 / (1 + noise) < gain < 1 + noise:
        return _kept(best_torch, reference, _undecided(best, best_torch, gain), supporting)
    if gain < 1 + noise:
        return _kept(best_torch, reference, _not_worth_it(best, best_torch, reference), supporting)
    sentence = f"Use {best.variant.name}: {_praise(best, best_torch, reference)}."
    slower = _slower_cells(best, best_torch)
    return Verdict(
        use_onnx=True, choice=best.variant.name, sentence=sentence, reasons=(*([slower] if slower else []), *supporting)
    )


def clock_noise(drift: float | None) -> float:
    """The share by which a speed may differ from run to run: at least `NOISE`, at least what the reference changed."""
    return max(NOISE, drift - 1, 1 / drift - 1) if drift else NOISE


def losses(row: Row, reference: Row, accept: Accept) -> list[str]:
    """Why a variant is not acceptable, a clause each; empty when it is."""
    found: list[str] = []
    theirs = {head.output: head for head in reference.heads}
    for head in row.heads:
        if head.output in theirs:
            found += _dropped(head, theirs[head.output], accept.drop)
    labelled = {head.output for head in row.heads}
    for one in row.likenesses:
        if one.cosine is None:
            found.append(f"{one.output} has NaN or Inf")
        elif one.output not in labelled and one.cosine < accept.cosine:
            found.append(f"{one.output} has a mean cosine of {one.cosine:.4f} to float32, below {accept.cosine:g}")
    return found


def _dropped(own: Head, theirs: Head, most: float) -> list[str]:
    pairs = (
        ("accuracy", own.accuracy, theirs.accuracy),
        ("macro F1", own.macro_f1, theirs.macro_f1),
        ("rank correlation", own.spearman, theirs.spearman),
    )
    return [
        f"{name} of {own.output} falls from {before:.3f} to {'NaN' if now is None else f'{now:.3f}'}"
        for name, now, before in pairs
        if before is not None and (now is None or before - now > most + 1e-12)
    ]


def _ratio(row: Row, reference: Row) -> float:
    return speed_ratio(row, reference) or 0.0


def _kept(torch: Row, reference: Row, sentence: str, supporting: Sequence[str]) -> Verdict:
    """The verdict against ONNX, with what to use in its place."""
    stay = f"Stay with {torch.variant.name}"
    if torch is not reference:
        stay += f", {_ratio(torch, reference):.2f} times as fast as PyTorch in float32"
    return Verdict(use_onnx=False, choice=torch.variant.name, sentence=sentence, reasons=(f"{stay}.", *supporting))


def _why_none(ours: Sequence[Row], reference: Row, accept: Accept) -> str:
    """Why no variant came into question."""
    ran = [row for row in ours if row.measured]
    if not ran:
        return f"none of the {len(ours)} variants worked."
    lost = "; ".join(f"{row.variant.name}: {losses(row, reference, accept)[0]}" for row in ran[:MOST_REASONS])
    return f"none of the {len(ran)} variants that ran keeps what the model knows ({lost})."


def _void(drift: float) -> str:
    return (
        f"No verdict: PyTorch in float32 took {drift:.2f} times as long at the end as at the start, so the speeds "
        "measured in between cannot be compared; measure again on a quiet machine, with --again."
    )


def _undecided(best: Row, torch: Row, gain: float) -> str:
    return (
        f"Measure again on a quiet machine: the clock of this one changed by more than the {gain:.2f} times "
        f"between {best.variant.name} and {torch.variant.name}, the fastest of either kind."
    )


def _not_worth_it(best: Row, torch: Row, reference: Row) -> str:
    gain = _ratio(best, reference) / _ratio(torch, reference)
    speed = f"{best.variant.name} is the fastest variant that keeps what the model knows, and "
    if gain >= 1 + NOISE:
        speed += f"the {gain:.2f} times by which it is faster than {torch.variant.name} is within this machine's noise"
    elif gain >= 1:
        speed += f"it is no faster than {torch.variant.name}"
    else:
        speed += f"it is {1 / gain:.2f} times slower than {torch.variant.name}"
    text = f"Do not use ONNX for this model on this hardware: {speed}"
    text += f" ({_ratio(best, reference):.2f} and {_ratio(torch, reference):.2f} times the speed of PyTorch in float32)"
    saved = _memory_words(best, torch)
    return f"{text}; all that it would change is memory: {saved}." if saved else f"{text}."


def _praise(best: Row, torch: Row, reference: Row) -> str:
    words = [f"{_ratio(best, reference):.2f} times as fast as PyTorch in float32"]
    if torch is not reference:
        words[0] += f" (the fastest of PyTorch, {torch.variant.name}: {_ratio(torch, reference):.2f})"
    theirs = {head.output: head for head in reference.heads}
    words += [
        f"accuracy of {head.output} {head.accuracy:.3f} (float32: {other.accuracy:.3f})"
        for head in best.heads
        if head.accuracy is not None and (other := theirs.get(head.output)) and other.accuracy is not None
    ]
    if best.lowest_cosine is not None:
        words.append(f"lowest cosine to float32 {best.lowest_cosine:.5f}")
    if saved := _memory_words(best, torch):
        words.append(saved)
    return ", ".join(words)


def _memory_words(row: Row, other: Row) -> str:
    if row.footprint is None or other.footprint is None:
        return ""
    own, theirs = row.footprint, other.footprint
    return (
        f"{own.model / 1e6:.0f} MB of memory for the model in place of {theirs.model / 1e6:.0f} MB (with the libraries "
        f"{own.process / 1e6:.0f} and {theirs.process / 1e6:.0f} MB)"
    )


def _slower_cells(best: Row, torch: Row) -> str:
    """Where PyTorch stays ahead although the whole is for ONNX."""
    pairs = [(cell, other) for cell in best.cells if (other := torch.cell(cell.place)) and other.p50 < cell.p50]
    if not pairs:
        return ""
    named = ", ".join(
        f"batch {cell.batch} of {cell.length} tokens ({other.p50 / cell.p50:.2f})" for cell, other in pairs
    )
    return f"It is not faster everywhere: {torch.variant.name} stays ahead at {named}."


def _lossy(ours: Sequence[Row], reference: Row, accept: Accept, best: Row | None) -> list[str]:
    """Variants that would be faster than the one chosen, and what they lose."""
    least = _ratio(best, reference) if best is not None else 0.0
    found = []
    for row in ours:
        lost = losses(row, reference, accept) if row.measured else []
        if lost and _ratio(row, reference) > least:
            speed = f"{row.variant.name} would run {_ratio(row, reference):.2f} times as fast as PyTorch in float32"
            found.append(f"{speed}, but {'; '.join(lost)}.")
    return found


def _failed(rows: Sequence[Row]) -> list[str]:
    failed = [row for row in rows if not row.measured]
    named = [f"{row.variant.name} did not work: {row.reason.rstrip('.')}." for row in failed[:MOST_REASONS]]
    return [*named, *([f"{len(failed) - MOST_REASONS} more did not work."] if len(failed) > MOST_REASONS else [])]


def _caveats(rows: Sequence[Row], drift: float | None, noise: float) -> list[str]:
    found = []
    if drift is not None and noise > NOISE:
        found.append(
            f"The machine was not quiet: PyTorch in float32 took {drift:.2f} times as long at the end as at the start, "
            f"so differences below {noise:.0%} mean nothing."
        )
    processors = {row.environment["processor"] for row in rows if "processor" in row.environment}
    if len(processors) > 1:
        found.append(f"The variants ran on different processors ({', '.join(sorted(processors))}); compare with care.")
    return found
