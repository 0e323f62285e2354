"""The verdict follows from the numbers, says them, and is against ONNX where they are."""

from __future__ import annotations

import pytest

from tests.study.building import row
from truecast.study.pareto import Point, front, points
from truecast.study.plan import Accept
from truecast.study.results import Head, Likeness, Row, Verdict, geometric_mean, speed_ratio
from truecast.study.verdict import judge, losses

ACCEPT = Accept()


def verdict(*rows: Row, drift: float | None = 1.0, accept: Accept = ACCEPT) -> Verdict:
    return judge((row("torch fp32"), *rows), accept, drift)


def test_the_fastest_acceptable_variant_is_chosen_with_its_numbers() -> None:
    found = verdict(row("onnx fp32", 8.0), row("onnx int8", 4.0, accuracy=0.895, cosine=0.99, memory=30 * 10**6))
    assert found.use_onnx
    assert found.choice == "onnx int8"
    assert found.sentence == (
        "Use onnx int8: 2.50 times as fast as PyTorch in float32, accuracy of logits 0.895 (float32: 0.900), "
        "lowest cosine to float32 0.99000, 45 MB of memory for the model in place of 150 MB (with the libraries 45 and "
        "150 MB)."
    )


def test_a_faster_variant_that_forgets_is_not_chosen_and_is_named() -> None:
    found = verdict(row("onnx fp32", 8.0), row("onnx int8", 2.0, accuracy=0.5))
    assert found.choice == "onnx fp32"
    assert found.reasons == (
        "onnx int8 would run 5.00 times as fast as PyTorch in float32, but accuracy of logits falls from 0.900 to "
        "0.500; macro F1 of logits falls from 0.900 to 0.500.",
    )


def test_not_onnx_when_nothing_keeps_what_the_model_knows() -> None:
    found = verdict(row("onnx int8", 2.0, accuracy=0.5), row("onnx int4", 1.0, accuracy=0.4))
    assert not found.use_onnx
    assert found.choice == "torch fp32"
    assert found.sentence.startswith(
        "Do not use ONNX for this model on this hardware: none of the 2 variants that ran "
    )
    assert "onnx int8: accuracy of logits falls from 0.900 to 0.500" in found.sentence
    assert found.reasons[0] == "Stay with torch fp32."


def test_not_onnx_when_pytorch_is_as_fast() -> None:
    found = verdict(row("torch compile", 5.0), row("onnx fp32", 6.0, memory=40 * 10**6))
    assert not found.use_onnx
    assert found.choice == "torch compile"
    assert found.sentence == (
        "Do not use ONNX for this model on this hardware: onnx fp32 is the fastest variant that keeps what the model "
        "knows, and it is 1.20 times slower than torch compile (1.67 and 2.00 times the speed of PyTorch in float32); "
        "all that it would change is memory: 60 MB of memory for the model in place of 150 MB (with the libraries 60 "
        "and 150 MB)."
    )
    assert found.reasons[0] == "Stay with torch compile, 2.00 times as fast as PyTorch in float32."


def test_a_gain_within_the_noise_is_none() -> None:
    assert not verdict(row("onnx fp32", 9.7)).use_onnx
    assert verdict(row("onnx fp32", 9.3)).use_onnx
    assert "it is no faster than torch fp32 (1.03 and 1.00 times" in verdict(row("onnx fp32", 9.7)).sentence
    noisy = verdict(row("onnx fp32", 9.3), drift=1.2)
    assert not noisy.use_onnx
    assert "the 1.08 times by which it is faster than torch fp32 is within this machine's noise" in noisy.sentence
    assert (
        "took 1.20 times as long at the end as at the start, so differences below 20% mean nothing" in noisy.reasons[-1]
    )
    assert not verdict(row("onnx fp32", 9.3), drift=1 / 1.2).use_onnx


def test_a_machine_that_was_busy_decides_nothing_within_its_noise() -> None:
    busy = verdict(row("onnx fp32", 8.0), drift=1.4)
    assert busy.sentence.startswith(
        "Measure again on a quiet machine: the clock of this one changed by more than the 1.25"
    )
    assert not busy.use_onnx
    assert verdict(row("onnx fp32", 4.0), drift=1.4).use_onnx
    assert "2.50 times slower than torch fp32" in verdict(row("onnx fp32", 25.0), drift=1 / 1.4).sentence


@pytest.mark.parametrize("drift", [25.0, 1 / 25.0, 1.6])
def test_a_machine_that_changed_altogether_voids_the_verdict(drift: float) -> None:
    found = verdict(row("onnx fp32", 0.1), row("onnx int4", failed="it crashed"), drift=drift)
    assert found.void
    assert not found.use_onnx
    assert found.choice == ""
    assert found.sentence.startswith(f"No verdict: PyTorch in float32 took {drift:.2f} times as long at the end")
    assert found.reasons == ("onnx int4 did not work: it crashed.",)


def test_memory_is_compared_without_the_libraries() -> None:
    def holding(name: str, milliseconds: float, libraries: int) -> Row:
        made = row(name, milliseconds, memory=100 * 10**6)
        assert made.footprint is not None
        held = {"bare_anonymous": libraries, "bare_file_backed": libraries // 2}
        held |= {"anonymous": made.footprint.anonymous + libraries}
        held |= {"file_backed": made.footprint.file_backed + libraries // 2}
        return made.model_copy(update={"footprint": made.footprint.model_copy(update=held)})

    pair = holding("torch fp32", 10.0, 400 * 10**6), holding("onnx fp32", 5.0, 40 * 10**6)
    assert "150 MB of memory for the model in place of 150 MB (with the libraries 210 and 750 MB)" in (
        judge(pair, ACCEPT, None).sentence
    )


def test_the_interval_of_an_accuracy_is_wilsons() -> None:
    """Values of Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 81 of 263, 15 of 148, 0 of 20."""
    for right, rows, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        found = Head(output="x", rows=rows, accuracy=right / rows).interval
        assert found == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    assert Head(output="x", rows=9, spearman=0.5).interval is None


def test_not_onnx_when_nothing_works() -> None:
    found = verdict(row("onnx fp32", failed="no kernel"), row("onnx int8", failed="it crashed."))
    assert not found.use_onnx
    assert found.sentence == "Do not use ONNX for this model on this hardware: none of the 2 variants worked."
    assert "onnx fp32 did not work: no kernel." in found.reasons
    assert "onnx int8 did not work: it crashed." in found.reasons


def test_a_pytorch_that_forgets_is_not_what_onnx_is_measured_by() -> None:
    found = verdict(row("torch bf16", 2.0, accuracy=0.3), row("onnx fp32", 5.0))
    assert found.choice == "onnx fp32"
    assert "the fastest of PyTorch" not in found.sentence


def test_where_pytorch_stays_ahead_is_said() -> None:
    slow = {(1, 1, 32): 10.0, (1, 32, 128): 100.0}
    mixed = {(1, 1, 32): 2.0, (1, 32, 128): 125.0}
    found = judge((row("torch fp32", slow), row("onnx fp32", mixed)), ACCEPT, None)
    assert found.use_onnx
    assert found.reasons == ("It is not faster everywhere: torch fp32 stays ahead at batch 32 of 128 tokens (0.80).",)


def test_embeddings_are_held_to_their_cosine() -> None:
    plain = row("torch fp32", accuracy=None)
    near, far = row("onnx int8", 4.0, None, 0.992), row("onnx int4", 2.0, None, 0.9)
    assert judge((plain, near, far), ACCEPT, None).choice == "onnx int8"
    assert losses(far, plain, ACCEPT) == ["logits has a mean cosine of 0.9000 to float32, below 0.99"]
    assert losses(far, plain, Accept(cosine=0.85)) == []


def test_nan_is_never_acceptable() -> None:
    broken = row("onnx fp16", 1.0, accuracy=0.9, cosine=None)
    assert losses(broken, row("torch fp32"), ACCEPT) == ["logits has NaN or Inf"]
    assert not verdict(broken).use_onnx
    assert broken.lowest_cosine is None


def test_a_drop_counts_up_to_the_plans_limit() -> None:
    reference = row("torch fp32")
    assert losses(row("onnx int8", accuracy=0.89), reference, ACCEPT) == []
    assert losses(row("onnx int8", accuracy=0.95), reference, ACCEPT) == []
    assert len(losses(row("onnx int8", accuracy=0.889), reference, ACCEPT)) == 2
    assert losses(row("onnx int8", accuracy=0.8), reference, Accept(drop=0.1)) == []


def test_rank_correlations_may_not_drop_either() -> None:
    def ranked(name: str, value: float | None) -> Row:
        return row(name).model_copy(update={"heads": (Head(output="score", rows=9, spearman=value),)})

    assert losses(ranked("onnx", 0.5), ranked("torch", 0.8), ACCEPT) == [
        "rank correlation of score falls from 0.800 to 0.500"
    ]
    assert losses(ranked("onnx", None), ranked("torch", 0.8), ACCEPT) == [
        "rank correlation of score falls from 0.800 to NaN"
    ]


def test_different_processors_are_said() -> None:
    found = verdict(row("onnx fp32", 5.0, environment={"processor": "B"}))
    assert found.reasons == ("The variants ran on different processors (A, B); compare with care.",)


def test_speed_is_the_geometric_mean_over_shared_cells() -> None:
    reference = row("torch fp32", {(1, 1, 8): 8.0, (1, 2, 8): 18.0, (1, 4, 8): 1.0})
    other = row("onnx fp32", {(1, 1, 8): 4.0, (1, 2, 8): 1.0, (2, 4, 8): 1.0})
    assert speed_ratio(other, reference) == pytest.approx(6.0)
    assert speed_ratio(row("onnx", failed="x"), reference) is None
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)


def test_the_pareto_front_on_known_points() -> None:
    found = [
        Point("best of both", 1.0, 0.9),
        Point("slower, better", 2.0, 0.95),
        Point("slower, worse", 2.0, 0.8),
        Point("as fast, worse", 1.0, 0.85),
        Point("cheapest", 0.5, 0.1),
        Point("equal", 2.0, 0.95),
        Point("slowest, no better", 3.0, 0.95),
    ]
    assert [point.name for point in front(found)] == ["cheapest", "best of both", "equal", "slower, better"]
    assert front([]) == []


def test_points_need_latency_and_score() -> None:
    two_cells = {(1, 1, 8): 2.0, (1, 4, 8): 32.0}
    found = points([row("onnx a", two_cells), row("onnx b", failed="x"), row("onnx c", accuracy=None, cosine=None)])
    assert found == [Point("onnx a", pytest.approx(4.0), 0.9)]
    plain = row("onnx d", accuracy=None).model_copy(
        update={"likenesses": (Likeness(output="x", rows=2, cosine=0.98, lowest_cosine=0.5),)}
    )
    assert points([plain])[0].score == 0.98
