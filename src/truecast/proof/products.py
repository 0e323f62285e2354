"""Exact products: what the codes of a graph come to with float activations, fast enough for a whole grid.

Without int8 activations ONNX Runtime decodes the weights of MatMulNBits at every run, which for a few tokens takes ten
times as long as the product. So the statement "the graph, with exact products, is the author's model" is made in two:

- the kernel: every such node, alone and with float activations, gives x · Wᵀ, W being decoded from the node's own
  inputs by the proof's reader (`reading`), for each kind of run that kernels know (`ROWS`);
- the grid: the graph with plain products of these very W in the nodes' place follows the tight rule at every point.

Data flow: nodes → `Products` (each weight decoded once) → `Products.checks` against the kernel, `Products.put` into a
copy of the graph. Nodes that `factors_of` does not know stay as they are and are run exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import psutil
from onnx_ir.passes.common import RemoveUnusedNodesPass

from truecast.artifact import Check, GraphInfo
from truecast.proof.constants import NotByRowsError, RowsOf, base_of
from truecast.proof.experts import rounds
from truecast.proof.held import load_graph, row_chunks
from truecast.proof.operators import CONTRIB, Array
from truecast.proof.reading import factor_rows, factor_scales
from truecast.proof.sessions import RUN_ERRORS, Given, exact_products, session_of
from truecast.proof.tally import Worst, broken, check
from truecast.runtime.providers import PAIRED_KEY

TIER, NAME = "parity", "kernels of the products"
OPERATOR = "MatMulNBits"
FACTOR_INPUTS = slice(1, 4)
"""Codes, scales and zero points."""
ROWS = (1, 2, 17)
"""Rows that a kernel is given: one takes a way of its own, 17 are a whole block of rows and one more."""
RELATIVE = 1e-5
"""Limit in parts of a row's largest result: ten times what float32 sums of this length leave. One wrong code of 4 bits
in a row of 20,000 weights moves its result by 5e-4 of it."""
SEED = 20_241_121
SHARE = 0.5
"""Of the memory that is free, what decoded weights may take; beyond it the kernels decode at every run."""


@dataclass(frozen=True)
class _Factor:
    """What some nodes multiply with: the same inputs and attributes. `shape` is [out, in]."""

    name: str
    node: ir.Node
    shape: tuple[int, int]
    read: RowsOf


@dataclass
class Products:
    """The products of codes of a graph; `decoded` holds W [out, in] by the names of factors, if memory sufficed.

    A weight that is bit for bit one of the arrays `known`, which nobody may change, is that array.
    """

    factors: Mapping[str, _Factor]
    fits: bool
    known: Sequence[Array]
    decoded: dict[str, Array] = field(default_factory=dict)
    _views: dict[str, ort.OrtValue] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ir.Model, known: Sequence[Array] = (), share: float = SHARE) -> Products:
        """The products of a graph as loaded, nothing decoded yet."""
        factors = {name: factor for node in model.graph if (factor := _factor(node)) for name in [factor.name]}
        needed = sum(4 * rows * width for rows, width in (factor.shape for factor in factors.values()))
        return cls(factors, needed <= share * psutil.virtual_memory().available, known)

    def checks(self, folder: Path, file: str) -> list[Check]:
        """Every kernel against NumPy, in one check if there are any; afterwards `decoded` is complete, if it fits."""
        return [self._check(folder, file)] if self.factors else []

    def _check(self, folder: Path, file: str) -> Check:
        worst = Worst()
        try:
            given, results = self._run(folder, file)
        except RUN_ERRORS as problem:
            return broken(TIER, NAME, str(problem).strip().splitlines()[0])
        for name, factor in self.factors.items():
            errors = self._errors(factor, given[factor.shape[1]], results[name])
            worst.add(float(errors.max()), RELATIVE, f"{factor.node.name}, row {int(errors.argmax())}")
        detail = f"worst at {worst.where}; {len(self.factors)} products, {', '.join(map(str, ROWS))} rows"
        return check(TIER, NAME, worst.value, RELATIVE, "of the largest result", detail)

    def _run(self, folder: Path, file: str) -> tuple[dict[int, Array], dict[str, Array]]:
        """Inputs [rows, in] by their width, and every factor's results [rows, out]; the rows of each run in order."""
        model = load_graph(folder, file)
        names = _alone(model, self.factors)
        session = session_of(model, folder)
        numbers = np.random.default_rng(SEED)
        widths = sorted({factor.shape[1] for factor in self.factors.values()})
        given = {width: numbers.standard_normal((sum(ROWS), width), np.float32) for width in widths}
        ends = np.cumsum(ROWS)
        runs = [
            session.run(list(names.values()), {f"x{width}": x[stop - rows : stop] for width, x in given.items()})
            for rows, stop in zip(ROWS, ends, strict=True)
        ]
        return given, {name: np.concatenate(parts) for name, parts in zip(names, zip(*runs, strict=True), strict=True)}

    def _errors(self, factor: _Factor, x: Array, got: Array) -> Array:
        """The largest error of each row of a factor's results, in parts of the row's largest.

        Where there are few results they may all be near zero by chance: they count as large as random signs make them.
        """
        want, longest = np.empty((len(x), factor.shape[0]), np.float32), 0.0
        for start, stop in row_chunks(factor.shape):
            weight = self._weight(factor, start, stop)
            want[:, start:stop] = x @ weight.T
            longest = max(longest, float(np.sqrt(np.square(weight).sum(1).max())))
        if got.shape != want.shape:
            return np.full(len(x), np.inf)
        usual = np.sqrt(np.square(x).sum(1)) * longest / np.sqrt(x.shape[1])
        largest = np.maximum(np.abs(want).max(1), usual)
        errors: Array = np.abs(got - want).max(1) / np.where(largest > 0, largest, 1)
        return np.nan_to_num(errors, nan=np.inf)

    def _weight(self, factor: _Factor, start: int, stop: int) -> Array:
        """Rows of W, decoded once if there is memory to keep them."""
        if not self.fits:
            return factor.read(start, stop)
        if factor.name not in self.decoded:
            known = self._known(factor)
            self.decoded[factor.name] = _whole(factor) if known is None else known
        return self.decoded[factor.name][start:stop]

    def _known(self, factor: _Factor) -> Array | None:
        """The array that is this weight, bit for bit (NaN is never the same)."""
        first = factor.read(0, 1)
        alike = [array for array in self.known if array.shape == factor.shape and np.array_equal(array[:1], first)]
        chunks = list(row_chunks(factor.shape))
        same = (array for array in alike if all(np.array_equal(array[a:b], factor.read(a, b)) for a, b in chunks))
        return next(same, None)

    def put(self, model: ir.Model) -> Given:
        """Puts plain products of the decoded weights into a graph; what is left of other products becomes exact.

        The session reads this object's own arrays, so that it must not outlive it.
        """
        exact_products(model)
        values: dict[str, ir.Value] = {}
        for node in list(model.graph):
            factor = _factor(node)
            if factor is None or factor.name not in self.decoded:
                continue
            if factor.name not in values:
                values[factor.name] = _value(f"{factor.name}, decoded", self.decoded[factor.name], node)
                model.graph.register_initializer(values[factor.name])
            _replace(model.graph, node, values[factor.name])
        RemoveUnusedNodesPass()(model)
        return {value.name or "": self._given(name) for name, value in values.items()}

    def _given(self, name: str) -> ort.OrtValue:
        """A weight as sessions take it: a view of the decoded array."""
        return self._views.setdefault(name, ort.OrtValue.ortvalue_from_numpy(self.decoded[name]))


def takes_int8(model: ir.Model, info: GraphInfo) -> bool:
    """Whether a session of the graph as shipped may round activations to int8."""
    levels = (node.attributes.get_int("accuracy_level", 0) for node in model.graph if node.op_type == OPERATOR)
    paired = any(node.op_type == "DequantizeLinear" for node in model.graph)
    return any(map(rounds, model.graph)) or any(levels) or (paired and info.session_entries.get(PAIRED_KEY) != "0")


def _factor(node: ir.Node) -> _Factor | None:
    """What a node multiplies with; None for other operators, and where more than that goes into the product."""
    if node.op_type != OPERATOR or any(value is not None for value in node.inputs[FACTOR_INPUTS.stop :]):
        return None
    given = [value.name or "" for value in node.inputs[FACTOR_INPUTS] if value is not None]
    numbers = [node.attributes[name].as_int() for name in ("bits", "block_size", "N", "K")]
    try:
        if factor_scales(node)(0, 1).dtype != np.float32:  # and so are the input and the result
            return None
        return _Factor(" ".join((*given, *map(str, numbers))), node, (numbers[2], numbers[3]), factor_rows(node))
    except NotByRowsError:
        return None


def _whole(factor: _Factor) -> Array:
    weight = np.empty(factor.shape, np.float32)
    for start, stop in row_chunks(factor.shape):
        weight[start:stop] = factor.read(start, stop)
    return weight


def _alone(model: ir.Model, factors: Mapping[str, _Factor]) -> dict[str, str]:
    """Leaves one node for each factor, fed by the inputs `x{width}`; returns the results' names by factor."""
    exact_products(model)
    inputs: dict[int, ir.Value] = {}
    outputs: dict[str, ir.Value] = {}
    for node in list(model.graph):
        factor = _factor(node)
        if factor is None or factor.name not in factors or factor.name in outputs:
            continue
        width = factor.shape[1]
        kind = ir.TensorType(ir.DataType.FLOAT)
        given = inputs.setdefault(width, ir.Value(name=f"x{width}", shape=ir.Shape([None, width]), type=kind))
        node.replace_input_with(0, given)
        node.outputs[0].shape, node.outputs[0].type = ir.Shape([None, factor.shape[0]]), kind
        outputs[factor.name] = node.outputs[0]
    model.graph.inputs[:] = list(inputs.values())
    model.graph.outputs[:] = list(outputs.values())
    RemoveUnusedNodesPass()(model)
    return {name: value.name or "" for name, value in outputs.items()}


def _value(name: str, array: Array, node: ir.Node) -> ir.Value:
    """An initializer whose array the session is given: ONNX Runtime still wants to hear of a file that is there."""
    codes = base_of(node.inputs[FACTOR_INPUTS.start])
    file = codes.const_value if codes is not None else None
    assert isinstance(file, ir.ExternalTensor)
    shape, kind = ir.Shape(array.shape), ir.DataType.FLOAT
    tensor = ir.ExternalTensor(file.location, 0, array.nbytes, kind, shape=shape, name=name, base_dir=file.base_dir)
    return ir.Value(name=name, shape=shape, type=ir.TensorType(kind), const_value=tensor)


def _replace(graph: ir.Graph, node: ir.Node, weight: ir.Value) -> None:
    result = node.outputs[0]
    product = ir.node("FusedMatMul", [node.inputs[0], weight], {"transB": 1}, domain=CONTRIB, name=node.name)
    product.outputs[0].shape, product.outputs[0].type = result.shape, result.type
    name, result.name = result.name, f"{result.name}, of codes"
    product.outputs[0].name = name
    graph.insert_before(node, product)
    ir.convenience.replace_all_uses_with(result, product.outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)
