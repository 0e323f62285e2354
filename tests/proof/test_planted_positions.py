"""Errors that begin far behind the first positions, or in a large batch: points of the grid must reach them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import truecast
from tests.conformance.cases import BY_NAME
from tests.proof.planting import change_graph, failed, manifest_of, reprove
from tests.tiny import tiny_checkpoint
from truecast.artifact import Status
from truecast.checkpoint import open_checkpoint
from truecast.proof.ending import PIECES, ending_checks, ending_note
from truecast.proof.parity import Subject, compare_all, parity_checks, reference_logits
from truecast.proof.points import FAR, Limits, Point, far, grid
from truecast.proof.reference import Reference
from truecast.proof.sessions import open_decoder

CONTEXT = 1200
WINDOW = 24
SMALL = {"num_hidden_layers": 1, "max_position_embeddings": CONTEXT}
CASES = {
    "llama": replace(BY_NAME["llama"], settings=BY_NAME["llama"].settings | SMALL),
    "gpt2": replace(BY_NAME["gpt2"], settings=BY_NAME["gpt2"].settings | {"n_layer": 1, "n_positions": CONTEXT}),
}
Change = Callable[[ir.Model], None]
Write = Callable[..., ir.Value]


@dataclass(frozen=True)
class Opened:
    """A case's sound artifact, the author's model, and his logits at the points that the plants need."""

    folder: Path
    reference: Reference
    points: dict[str, Point]
    wanted: dict[str, Sequence[np.ndarray]]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Opened]:
    made: dict[str, Opened] = {}

    def make(name: str) -> Opened:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            truecast.export(
                tiny_checkpoint(CASES[name], folder / "source"), folder / "out", precision="fp32", verify=False
            )
            reference = Reference.build(open_checkpoint(folder / "source"))
            reference.load_checkpoint()
            points = {p.name: p for p in grid(LIMITS)[0] if p.name in (LONG, WIDE, PADDED)}
            wanted = {key: list(reference_logits(reference, point)) for key, point in points.items()}
            made[name] = Opened(folder / "out", reference, points, wanted)
        return made[name]

    return make


LIMITS = Limits("any", False, 257, CONTEXT, (WINDOW,), (), 10**6, 4)
LONG, WIDE, PADDED = f"{FAR} positions", "batch 33", f"padding of {WINDOW + 2}"


def on_input(name: str, change: Callable[[ir.Value, Write], ir.Value]) -> Change:
    """Puts nodes between an input and all its readers."""

    def changed(model: ir.Model) -> None:
        given = next(value for value in model.graph.inputs if value.name == name)
        readers = list(given.uses())
        first = next(node for node in model.graph if any(use.node is node for use in readers))

        def write(kind: str, *inputs: ir.Value | np.ndarray, **attributes: object) -> ir.Value:
            values = []
            for number, value in enumerate(inputs):
                if isinstance(value, np.ndarray):
                    tensor = ir.tensor(value, name=f"planted{len(model.graph.initializers)}.{number}")
                    value = ir.Value(name=tensor.name, const_value=tensor, type=ir.TensorType(tensor.dtype))
                    value.shape = tensor.shape
                    model.graph.initializers.add(value)
                values.append(value)
            node = ir.node(kind, values, attributes)
            model.graph.insert_before(first, node)
            return node.outputs[0]

        result = change(given, write)
        for use in readers:
            use.node.replace_input_with(use.idx, result)

    return changed


def number(value: int) -> np.ndarray:
    return np.array(value, np.int64)


def one_too_high_past(last: int) -> Change:
    return on_input(
        "position_ids",
        lambda ids, write: write("Add", ids, write("Cast", write("Greater", ids, number(last)), to=7)),
    )


def frozen_at(last: int) -> Change:
    return on_input("position_ids", lambda ids, write: write("Min", ids, number(last)))


def hidden_from(first: int, newest: int) -> Change:
    """Keys from `first` on are masked, but for the newest ones."""

    def change(mask: ir.Value, write: Write) -> ir.Value:
        length = write("Squeeze", write("Shape", mask, start=1))
        places = write("Range", number(0), length, number(1))
        seen = write("Less", places, number(first))
        new = write("GreaterOrEqual", places, write("Sub", length, number(newest)))
        return write("Mul", mask, write("Cast", write("Or", seen, new), to=7))

    return on_input("attention_mask", change)


def unmasked_behind_padding_of(count: int) -> Change:
    """Rows with more padding than that are read as if they had none."""

    def change(mask: ir.Value, write: Write) -> ir.Value:
        padding = write("ReduceSum", write("Sub", number(1), mask), np.array([1]), keepdims=1)
        return write("Max", mask, write("Cast", write("Greater", padding, number(count)), to=7))

    return on_input("attention_mask", change)


def zeroed_rows_from(first: int) -> Change:
    """Every row of the batch from that on reads the token 0."""

    def change(ids: ir.Value, write: Write) -> ir.Value:
        rows = write("Range", number(0), write("Squeeze", write("Shape", ids, start=0, end=1)), number(1))
        kept = write("Cast", write("Less", rows, number(first)), to=7)
        return write("Mul", ids, write("Unsqueeze", kept, np.array([1])))

    return on_input("input_ids", change)


PLANTS = [
    *(("llama", LONG, f"one too high past {last}", one_too_high_past(last)) for last in (128, 500, 900)),
    ("llama", LONG, "keys masked from 120 on", hidden_from(120, 8)),
    ("llama", LONG, "keys masked from 600 on", hidden_from(600, 8)),
    ("gpt2", LONG, "learned positions frozen at 112", frozen_at(112)),
    ("gpt2", LONG, "learned positions frozen at 990", frozen_at(990)),
    ("llama", WIDE, "rows from 8 on zeroed", zeroed_rows_from(8)),
    ("llama", WIDE, "rows from 32 on zeroed", zeroed_rows_from(32)),
    ("llama", PADDED, "padding longer than a window", unmasked_behind_padding_of(WINDOW)),
]


def sound_and_spoilt(found: Opened, change: Change, copied: Callable[[Path], Path]) -> Iterator[tuple[Subject, bool]]:
    """The artifact as it is and a copy with the error, and whether each is to pass."""
    for folder, passes in ((found.folder, True), (copied(found.folder), False)):
        if not passes:
            change_graph(folder, change)
        yield Subject("as shipped", open_decoder(folder, manifest_of(folder).graph), tight=True), passes


@pytest.mark.parametrize(
    ("case", "point", "change"), [(c, p, x) for c, p, _, x in PLANTS], ids=[n for _, _, n, _ in PLANTS]
)
def test_an_error_far_behind_is_met(
    case: str, point: str, change: Change, opened: Callable[[str], Opened], copied: Callable[[Path], Path]
) -> None:
    found = opened(case)
    for tested, passes in sound_and_spoilt(found, change, copied):
        compare_all(found.reference, [tested], [found.points[point]], known=found.wanted)
        checks = parity_checks(tested, "the original")
        assert all(check.passed for check in checks) is passes, checks
        assert bool(tested.failed) is not passes


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("llama", one_too_high_past(CONTEXT - 3)),
        ("llama", hidden_from(FAR + 20, 8)),
        ("gpt2", frozen_at(CONTEXT - 2)),
    ],
)
def test_an_error_at_the_end_of_the_context_is_met(
    case: str, change: Change, opened: Callable[[str], Opened], copied: Callable[[Path], Path]
) -> None:
    found = opened(case)
    for tested, passes in sound_and_spoilt(found, change, copied):
        (check,) = ending_checks(found.reference, tested, CONTEXT, 257, far(LIMITS))
        assert check.passed is passes, check


def test_a_past_too_large_for_the_memory_is_replaced_by_position_ids(
    opened: Callable[[str], Opened], copied: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("truecast.proof.ending.SHARE", 0.0)
    found, folder = opened("llama"), copied(opened("llama").folder)
    change_graph(folder, one_too_high_past(CONTEXT - 3))
    for place, passes in ((found.folder, True), (folder, False)):
        tested = Subject("as shipped", open_decoder(place, manifest_of(place).graph), tight=True)
        checks = ending_checks(found.reference, tested, CONTEXT, 257, far(LIMITS))
        assert checks[0].passed is passes
        assert f"position ids from {CONTEXT - sum(PIECES)} behind" in ending_note(checks, CONTEXT, far(LIMITS))[0]


def test_the_whole_proof_meets_an_error_far_behind_and_says_where(
    opened: Callable[[str], Opened], copied: Callable[[Path], Path]
) -> None:
    folder = copied(opened("llama").folder)
    change_graph(folder, one_too_high_past(900))
    certificate = reprove(folder)
    assert certificate.status is Status.FAILED
    assert {"as shipped against the original", "as shipped at the end of the context"} <= set(failed(certificate))
    assert certificate.notes[0].startswith("First divergence: layer 0")
    assert any(f"Of the context of {CONTEXT}, the first {FAR} positions were run" in note for note in certificate.notes)
