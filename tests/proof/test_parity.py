"""Tier 2: what its limits let pass and what they do not, on a graph whose logits are disturbed on purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.proof.conftest import Artifact
from tests.proof.planting import change_graph, failed, manifest_of, node_of, reprove
from truecast.checkpoint import open_checkpoint
from truecast.proof import parity
from truecast.proof.feeds import given_mask
from truecast.proof.measures import Drift
from truecast.proof.parity import (
    RELATIVE,
    Subject,
    compare_all,
    parity_checks,
    price_checks,
    reference_logits,
    tie_nats,
)
from truecast.proof.points import Limits, Point, grid
from truecast.proof.reference import Reference
from truecast.proof.sessions import open_decoder
from truecast.runtime.decoder import Decoder

CASE = "gemma3_text"
Disturb = Callable[[np.ndarray], np.ndarray]
AGAINST = "the original"


class Disturbed(Decoder):
    """A decoder whose logits go through a function before anyone sees them."""

    disturb: Disturb

    def step(self, *args: object, **kwargs: object) -> np.ndarray:
        return self.disturb(np.array(super().step(*args, **kwargs)))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def reference(made: Artifact) -> Reference:
    built = Reference.build(open_checkpoint(manifest_of(made(CASE, "fp32")).source.path))
    built.load_checkpoint()
    return built


@pytest.fixture(scope="module")
def points() -> list[Point]:
    limits = Limits("any", False, 300, 128, (8,), (), 10**6, 4)
    wanted = {"batch 2, new 17, past 0", "left padding", "text"}
    return [point for point in grid(limits)[0] if point.name in wanted]


def subject(folder: Path, disturb: Disturb, **options: object) -> Subject:
    decoder = open_decoder(folder, manifest_of(folder).graph)
    disturbed = Disturbed(decoder.session, decoder.info)
    disturbed.disturb = disturb
    settings = {"tight": True, **options}
    return Subject("as shipped", disturbed, **settings)  # type: ignore[arg-type]


def scaled(factor: float) -> Disturb:
    """Moves the largest logit by `factor` of itself."""

    def disturb(logits: np.ndarray) -> np.ndarray:
        place = np.unravel_index(np.abs(logits).argmax(), logits.shape)
        logits[place] *= 1 + factor
        return logits

    return disturb


def noisy(spread: float) -> Disturb:
    random = np.random.default_rng(0)
    return lambda logits: (logits + spread * random.standard_normal(logits.shape)).astype(np.float32)


@pytest.mark.parametrize(("factor", "passes"), [(0.5 * RELATIVE, True), (2 * RELATIVE, False)])
def test_the_tight_rule(factor: float, passes: bool, made: Artifact, reference: Reference, points: list[Point]) -> None:
    tested = subject(made(CASE, "fp32"), scaled(factor))
    compare_all(reference, [tested], points[:1])
    (check,) = parity_checks(tested, AGAINST)
    assert check.passed is passes
    assert check.measured == pytest.approx(factor, rel=0.1)
    assert bool(tested.failed) is not passes


def test_the_references_own_noise_widens_the_tight_rule(
    made: Artifact, reference: Reference, points: list[Point], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "_noise", lambda *args: 1.0)
    tested = subject(made(CASE, "fp32"), scaled(2 * RELATIVE))
    compare_all(reference, [tested], points[:1])
    assert parity_checks(tested, AGAINST)[0].passed


def test_the_noise_is_that_of_float32(reference: Reference, points: list[Point]) -> None:
    """The float64 twin runs, with padding too, and differs from float32 by rounding only."""
    for point in points:
        for number, want in enumerate(reference_logits(reference, point)):
            real = parity.real_positions(point)[number]
            again = list(reference_logits(reference, point))[number]
            noise = parity._noise(reference, point, number, again, real)
            assert 0 < noise < 1e-4 * np.abs(want).max()
            break


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_value_that_is_not_finite_fails(
    value: float, made: Artifact, reference: Reference, points: list[Point]
) -> None:
    def disturb(logits: np.ndarray) -> np.ndarray:
        logits[-1, 0, 0] = value  # a padded position where the point has padding
        return logits

    tested = subject(made(CASE, "fp32"), disturb)
    compare_all(reference, [tested], [point for point in points if point.name == "left padding"])
    assert not next(check for check in parity_checks(tested, AGAINST) if "finite" in check.name).passed


def test_logits_of_another_shape_fail(made: Artifact, reference: Reference, points: list[Point]) -> None:
    tested = subject(made(CASE, "fp32"), lambda logits: logits[:, :, 1:])
    compare_all(reference, [tested], points)
    assert "instead of" in parity_checks(tested, AGAINST)[0].detail


@pytest.mark.parametrize(("spread", "passes"), [(0.05, True), (1.0, False)])
def test_the_price_of_activations_is_gated(
    spread: float, passes: bool, made: Artifact, reference: Reference, points: list[Point]
) -> None:
    tested = subject(made(CASE, "fp32"), noisy(spread), tight=False, priced=True)
    compare_all(reference, [tested], points)
    divergence, choice = price_checks("price", tested.price, parity.ACTIVATION_KL, parity.ACTIVATION_TOP1)
    assert divergence.passed is passes
    assert divergence.measured == pytest.approx(spread**2 / 2, rel=0.5)
    assert choice.measured is not None and choice.measured <= 1.0


def test_each_point_has_a_limit_of_its_own(made: Artifact, reference: Reference, points: list[Point]) -> None:
    """A kernel that is wrong at one point only is lost in no mean."""
    calls = []

    def once(logits: np.ndarray) -> np.ndarray:
        calls.append(logits.shape)
        return noisy(3.0)(logits) if len(calls) == 1 else logits

    tested = subject(made(CASE, "fp32"), once, tight=False, priced=True)
    compare_all(reference, [tested], points)
    check = next(check for check in parity_checks(tested, AGAINST) if "one point" in check.name)
    assert not check.passed and points[0].name in check.detail
    assert price_checks("price", tested.price, parity.ACTIVATION_KL, parity.ACTIVATION_TOP1)[0].passed


def test_the_price_of_the_format_is_measured_against_the_original(
    made: Artifact, reference: Reference, points: list[Point]
) -> None:
    text = [point for point in points if point.text]
    originals = {
        point.name: [logits + 5 * (logits > 1) for logits in reference_logits(reference, point)] for point in text
    }
    tested = subject(made(CASE, "fp32"), lambda logits: logits, tight=False, priced=True)
    compare_all(reference, [tested], points, originals)
    assert price_checks("activations", tested.price, parity.ACTIVATION_KL, parity.ACTIVATION_TOP1)[0].passed
    assert not price_checks("format", tested.format_price, parity.FORMAT_KL, None)[0].passed


def test_choices_that_the_reference_hardly_prefers_are_ties() -> None:
    near = tie_nats(parity.ACTIVATION_KL)
    lost = Drift(np.full(10, 1e-3), np.array([0.0] * 8 + [near - 0.01, near + 0.01]))
    choice = price_checks("price", [lost], parity.ACTIVATION_KL, parity.ACTIVATION_TOP1)[1]
    assert choice.measured == 0.9 and choice.passed
    worse = replace(lost, shortfall=np.array([0.0] * 8 + [near + 0.01] * 2))
    assert not price_checks("price", [worse], parity.ACTIVATION_KL, parity.ACTIVATION_TOP1)[1].passed


def test_nothing_measured_is_no_success() -> None:
    assert not price_checks("price", [], 1.0, 0.5)[0].passed


def test_the_contract_right_moves_the_ones_to_the_front() -> None:
    mask = np.array([[1, 1, 0, 0, 1], [0, 1, 1, 1, 1]])
    assert given_mask("right", mask).tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]


def test_a_compact_point_is_every_row_alone(reference: Reference) -> None:
    """With a window, where the author puts padding inside a row matters; rows alone have none."""
    point = next(p for p in grid(Limits("right", False, 300, 128, (), (), 10**6, 4))[0] if p.name == "right padding")
    together = list(reference_logits(reference, point))
    for row, mask in enumerate(point.mask):
        alone = replace(
            point,
            tokens=point.tokens[row : row + 1, mask == 1],
            mask=np.ones((1, mask.sum()), np.int64),
            pieces=(int(mask[:17].sum()), 1, 1, 1),
        )
        for number, want in enumerate(reference_logits(reference, alone)):
            got = together[number][row, : want.shape[1]]
            np.testing.assert_allclose(got, want[0], atol=1e-5)


def test_a_small_error_in_float16_is_beyond_its_rule(spoilable: Artifact) -> None:
    import onnx_ir as ir

    def spoil(model: ir.Model) -> None:
        node_of(model, "model.layers.1/GroupQueryAttention_1").attributes.add(ir.AttrFloat32("scale", 0.25))

    folder = spoilable(CASE, "fp16")
    change_graph(folder, spoil)
    certificate = reprove(folder)
    assert "as shipped against the original with these weights" in failed(certificate)
    assert "scale is 0.25" in certificate.notes[0]
