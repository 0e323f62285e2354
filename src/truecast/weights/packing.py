"""From abstract weight operators to those of ONNX Runtime, each with the bindings of its operands.

Data flow: `truecast::Linear` and `truecast::Embedding` name a parameter → its precision decides its form (`forms`) →
the node becomes products or lookups of that form (`emission`) → a `Binding` per form, and one for every other
initializer of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from truecast.checkpoint.model import Array, StoredTensor
from truecast.dialects.expand import NodeWriter, finish
from truecast.errors import InputError
from truecast.weights.binding import Alias, Binding, Operand, array_binding, stacked
from truecast.weights.channels import FACTORS, FACTORS_PACKING, Channels, channels, channels_alike, stack_channels
from truecast.weights.contrib import ContribEmitter
from truecast.weights.emission import Emitter, float_table, group_sums, offsets_of, scales_of
from truecast.weights.experts import pack_experts, pack_product
from truecast.weights.floats import dense_binding
from truecast.weights.forms import Blocks, Bnb4, Floats, Form, alike, form_of, stack_blocks
from truecast.weights.integers import Quantized, Range, Seen, at_first_use, integer_product, measured, ranged
from truecast.weights.merging import attention_groups, gates
from truecast.weights.precision import Precision
from truecast.weights.quantize import BLOCK_SIZES
from truecast.weights.sources import Sources

EXPERTS: Mapping[str, Callable[[Packer, ir.Node], None]] = MappingProxyType(
    {"Experts": pack_experts, "ExpertProduct": pack_product}
)
"""Who packs the abstract operators of experts."""
TOKENS = "input_ids"
"""The input whose numbers pick rows of the tables of tokens."""
COLUMN_ORDER = "order of the columns"
"""Packing of the index by which a product reads its input, where the checkpoint ordered its columns."""


@dataclass(frozen=True)
class _Site:
    """A linear leaf: its node, the weight and bias it names, and the name of its module."""

    node: ir.Node
    weight: str
    bias: str
    name: str

    @classmethod
    def of(cls, node: ir.Node) -> _Site:
        weight = node.attributes["weight"].as_string()
        return cls(node, weight, node.attributes["bias"].as_string(), _module(weight))

    @property
    def input(self) -> ir.Value:
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def transposed(self) -> bool:
        return bool(self.node.attributes["transposed"].as_int())


@dataclass
class Packer:
    """Packs the weights of one graph; `bindings` grows as nodes are packed.

    `choose` gives the precision of a parameter, `precision` the one of everything else. `emitter` writes the nodes.
    `seen` is what calibration saw of the inputs of products of integers, by the name of the weight. `forms` are those
    of the weights packed so far.
    """

    model: ir.Model
    sources: Sources
    precision: Precision
    embedding: str
    head: str
    choose: Callable[[str], Precision] | None = None
    emitter: Emitter = field(default_factory=ContribEmitter)
    seen: Mapping[str, Seen] = field(default_factory=dict)
    bindings: list[Binding] = field(default_factory=list)
    aliases: list[Alias] = field(default_factory=list)
    forms: dict[str, Form] = field(default_factory=dict)
    _made: dict[tuple[object, ...], ir.Value] = field(default_factory=dict)
    _inputs: dict[tuple[ir.Value, bool, bytes], Quantized] = field(default_factory=dict)
    _levels: set[int] = field(default_factory=set)

    def pack(self) -> list[Binding]:
        """Packs every weight; afterwards the graph holds no abstract operator and every initializer is bound."""
        linears = [node for node in self.model.graph if node.op_type == "Linear"]
        embeddings = [node for node in self.model.graph if node.op_type == "Embedding"]
        tied = self.tied
        for node in embeddings:
            self._embedding(node, tied)
        for node in [node for node in self.model.graph if node.op_type in EXPERTS]:
            EXPERTS[node.op_type](self, node)
        for group in attention_groups(linears):
            self._merged([_Site.of(node) for node in group])
        if self.emitter.merges_gates:
            for group in gates(self.model.graph):
                self._merged([_Site.of(node) for node in group], of_integers=False)
        for node in linears:
            if node.graph is not None:
                self._linear(_Site.of(node), tied)
        bound = {operand.name for binding in self.bindings for operand in binding.operands}
        bound |= {alias.name for alias in self.aliases}
        for name, value in self.model.graph.initializers.items():
            if name not in bound and value.const_value is None:
                self.bindings.append(dense_binding(name, self.sources[name], value.dtype or self.precision.dtype))
        return self.bindings

    @property
    def session_entries(self) -> Mapping[str, str]:
        """Session keys that the graph needs in ONNX Runtime; of several levels, the one that loses least."""
        return self.emitter.session_entries(min(self._levels)) if self._levels else {}

    @property
    def decoded(self) -> list[StoredTensor]:
        """Quantized weights that were to be kept, and that no operator holds as they are: they became floats."""
        kept = [weight for weight in self.forms if self.precision_of(weight).own]
        floats = [weight for weight in kept if not self.forms[weight].binding.own]
        return [tensor for tensor in map(self.sources.__getitem__, floats) if tensor.is_quantized]

    @property
    def unquantized(self) -> list[StoredTensor]:
        """Weights that were to get codes, and that became floats since no operator takes their blocks."""
        floats = [weight for weight, form in self.forms.items() if isinstance(form, Floats) and not form.binding.own]
        return [self.sources[weight] for weight in floats if self.precision_of(weight).bits is not None]

    @property
    def tied(self) -> bool:
        """Whether head and embedding are one weight, so that one table may serve both."""
        if not self.head:
            return False
        return self.sources[self.head] is self.sources[self.embedding]

    def precision_of(self, weight: str) -> Precision:
        """How a weight is to be held."""
        chosen = self.choose(weight) if self.choose is not None else self.precision
        if chosen.bits is None or chosen.channels or not self.tied or weight not in (self.embedding, self.head):
            return chosen
        # a lookup of whole blocks needs no cut behind it, and a tied head must have the very numbers that it has
        width = self.sources[weight].shape[1]
        fitting = [size for size in BLOCK_SIZES if size <= chosen.block and width % size == 0]
        return replace(chosen, block=max(fitting)) if fitting else chosen

    def _form(self, weight: str, transposed: bool = False) -> Form:
        tensor = self.sources[weight]
        if transposed and tensor.is_quantized:  # a library stores [out, in], whatever the module holds
            raise InputError(
                f"{tensor.name} in {tensor.location.path} is quantized, and its module holds weights as [in, out]; "
                "such a model can only be cast from floats."
            )
        if weight not in self.forms:
            precision, seen = self.precision_of(weight), self._seen(weight)
            if precision.channels and seen is not None:
                form: Form = channels(weight, tensor, precision, transposed, seen.divisors)
            else:
                form = form_of(weight, tensor, precision, transposed)
            self.forms[weight] = self.emitter.placed(form)
        return self.forms[weight]

    # Initializers -----------------------------------------------------------------------------------------------

    def add(self, binding: Binding) -> dict[str, ir.Value]:
        """The operands of a binding as initializers, made when they are first asked for."""
        graph = self.model.graph
        if not any(binding.operands == other.operands for other in self.bindings):
            for operand in binding.operands:
                graph.initializers.add(_initializer(operand.name, operand.dtype, operand.shape))
            self.bindings.append(binding)
        return {operand.name: graph.initializers[operand.name] for operand in binding.operands}

    def _alias(self, operand: Operand, other: Operand) -> ir.Value:
        """The bytes of an operand as another one: under a name, a dtype and a shape of its own."""
        alias = _initializer(other.name, other.dtype, other.shape)
        self.model.graph.initializers.add(alias)
        self.aliases.append(Alias(other.name, operand.name, other.dtype, other.shape))
        return alias

    def _vector(self, name: str) -> ir.Value:
        if name not in self.model.graph.initializers:
            self.add(dense_binding(name, self.sources[name], self.precision.dtype))
        return self.model.graph.initializers[name]

    def _once(self, key: tuple[object, ...], make: Callable[[], ir.Value]) -> ir.Value:
        """A computed value that several nodes share."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    # Linear -----------------------------------------------------------------------------------------------------

    def _linear(self, site: _Site, tied: bool) -> None:
        shared = tied and site.weight == self.head
        own = self.precision_of(site.weight).channels  # codes of a row's own scale serve products alone
        form = self._form(self.embedding if shared and not own else site.weight, site.transposed)
        bias = self._vector(site.bias) if site.bias else None
        write = NodeWriter(site.node)
        if isinstance(form, Blocks):
            result = self._blocks(write, form, site.input, bias, self._level(site.weight), site.name)
        elif isinstance(form, Channels):
            result = self._integers(write, form, site, bias, site.name)
        else:
            result = self._added(write, self._plain(write, form, site, shared, bias is not None), bias, site.name)
        finish(site.node, result)

    def _level(self, weight: str) -> int:
        return self.precision_of(weight).accuracy_level

    def _added(self, write: NodeWriter, product: ir.Value, bias: ir.Value | None, name: str) -> ir.Value:
        return product if bias is None else write.op("Add", [product, bias], name=name)

    def _plain(self, write: NodeWriter, form: Form, site: _Site, shared: bool, part: bool) -> ir.Value:
        """The product without its bias; `part` says that something is still to be added."""
        name = f"{site.name}.product" if part else site.name
        if isinstance(form, Bnb4):
            return self.emitter.bnb4_product(write, form, site.input, self.add(form.binding), name)
        assert isinstance(form, Floats)
        dtype = self.precision.dtype
        whole = form.table.dtype == dtype and not form.scales
        if whole and not shared and (site.transposed or not self.precision.as_stored):
            turned = dense_binding(site.weight, self.sources[site.weight], dtype, transpose=not site.transposed)
            return write.op("MatMul", [site.input, *self.add(turned).values()], name=name)
        values = self.add(form.binding)
        table = self._once(("table", form.table.name), lambda: float_table(write, form, values, dtype))
        if site.transposed:
            return write.op("MatMul", [site.input, table], name=name)
        return self.emitter.product(write, site.input, table, name)

    def _merged(self, sites: Sequence[_Site], of_integers: bool = True) -> None:
        """Products of one input as one product, where their weights are alike; its result is split again."""
        forms = [self._form(site.weight) for site in sites]
        integers = of_integers and channels_alike(forms)
        if not integers and (not alike(forms) or len({self._level(site.weight) for site in sites}) > 1):
            return
        name = "+".join([sites[0].name, *(site.name.rpartition(".")[2] for site in sites[1:])])
        form = _stacked(name, forms)
        self.add(form.binding)
        bias = None
        if names := [site.bias for site in sites if site.bias]:
            vectors = [dense_binding(bias, self.sources[bias], self.precision.dtype) for bias in names]
            bias = self.add(stacked(vectors, [f"{name}.bias"]))[f"{name}.bias"]
        write = NodeWriter(sites[0].node)
        if isinstance(form, Channels):
            product = self._integers(write, form, sites[0], bias, name)
        else:
            product = self._blocks(write, form, sites[0].input, bias, self._level(sites[0].weight), name)
        sizes = write.ints(*(site.node.attributes["N"].as_int() for site in sites))
        splits = write.ops("Split", [product, sizes], [site.name for site in sites], {"axis": -1})
        for site, result in zip(sites, splits, strict=True):
            finish(site.node, result)

    def _integers(self, write: NodeWriter, form: Channels, site: _Site, bias: ir.Value | None, name: str) -> ir.Value:
        """A product of integers; its input is quantized once for all products that read it alike."""
        values = self.add(form.binding)
        key = (site.input, form.static, b"" if form.divisors is None else form.divisors.tobytes())
        if key not in self._inputs:
            early, x = at_first_use(site.input, self.model.graph), site.input
            if form.divisors is not None:
                factors = array_binding(f"{site.weight}{FACTORS}", 1 / form.divisors, FACTORS_PACKING)
                x = early.op("Mul", [x, *self.add(factors).values()])
                x.shape, x.type = site.input.shape, site.input.type
            self._inputs[key] = ranged(early, x, self._range(site)) if form.static else measured(early, x)
        return integer_product(write, form, site.input, self._inputs[key], values, bias, name)

    def _range(self, site: _Site) -> Range:
        seen = self._seen(site.weight)
        if seen is None:
            raise InputError(
                f"Calibration has not seen what {site.weight} is multiplied with; give examples that reach it, or keep "
                f"it in float with --keep '{site.weight}=fp32'."
            )
        return seen.range

    def _seen(self, weight: str) -> Seen | None:
        """What calibration saw of a weight's input; it saw a tied head under the name of the embedding."""
        names = [weight, *([self.embedding] if weight == self.head and self.tied else [])]
        return next((self.seen[name] for name in names if name in self.seen), None)

    def _blocks(
        self, write: NodeWriter, form: Blocks, x: ir.Value, bias: ir.Value | None, level: int, name: str
    ) -> ir.Value:
        values = self.add(form.binding)
        self._levels.add(level)
        operands = self._block_operands(write, form, values)
        if form.order is not None:
            x = self._reordered(write, x, form.order)
        if not form.offsets:
            return self.emitter.block_product(write, form, x, operands, bias, level, name)
        product = self.emitter.block_product(write, form, x, operands, bias, level, f"{name}.product")
        sums = self._once(("sums", x, form.group), lambda: group_sums(write, x, form))
        offsets = self._offsets(write, form, values)
        moved = self.emitter.product(write, sums, offsets, f"{name}.moved")
        return write.op("Add", [product, moved], name=name)

    def _block_operands(self, write: NodeWriter, form: Blocks, values: dict[str, ir.Value]) -> list[ir.Value | None]:
        """Codes, scales and zero points."""
        dtype = self.precision.dtype
        scales = self._once(("scales", form.scales[0].name), lambda: scales_of(write, values, form, dtype))
        return [values[form.codes.name], scales, values[form.zeros.name] if form.zeros is not None else None]

    def _offsets(self, write: NodeWriter, form: Blocks, values: dict[str, ir.Value]) -> ir.Value:
        dtype = self.precision.dtype
        return self._once(("offsets", form.offsets[0].name), lambda: offsets_of(write, values, form, dtype))

    def _reordered(self, write: NodeWriter, x: ir.Value, order: Array) -> ir.Value:
        """The columns of x as the codes have them; once for all products that read them alike.

        Columns in their own order stay as they are: ONNX Runtime makes a Slice of a Gather of one column, and then
        cannot read the order from the data file (1.31).
        """
        if (order == np.arange(len(order))).all():
            return x

        def make() -> ir.Value:
            orders = sum(binding.packing == COLUMN_ORDER for binding in self.bindings)
            binding = array_binding(f"column_order.{orders}", order.astype(np.int64), COLUMN_ORDER)
            return write.op("Gather", [x, *self.add(binding).values()], {"axis": -1})

        return self._once(("order", x, order.tobytes()), make)

    # Embedding --------------------------------------------------------------------------------------------------

    def _embedding(self, node: ir.Node, tied: bool) -> None:
        weight, ids = node.attributes["weight"].as_string(), node.inputs[0]
        assert ids is not None
        form = self._table_form(weight, of_tokens=weight == self.embedding or _reads_tokens(ids))
        write, name = NodeWriter(node), _module(weight)
        if isinstance(form, Blocks):
            values = self.add(form.binding if tied and weight == self.embedding else in_rows(form).binding)
            codes, scales, zeros = self._block_operands(write, form, values)
            if tied and weight == self.embedding:  # the head wants blocks, the lookup rows: one table, two shapes
                codes = self._alias(form.codes, replace(in_rows(form).codes, name=f"{weight}.rows"))
            offsets = self._offsets(write, form, values) if form.offsets else None
            finish(node, self.emitter.block_lookup(write, form, ids, [codes, scales, zeros], offsets, name))
            return
        assert isinstance(form, Floats)
        values = self.add(form.binding)
        dtype = self.precision.dtype
        if form.scales or form.table.dtype == dtype:
            table = self._once(("table", form.table.name), lambda: float_table(write, form, values, dtype))
            finish(node, write.op("Gather", [table, ids], {"axis": 0}, name=name))
            return
        rows = write.op("Gather", [values[form.table.name], ids], {"axis": 0}, name=f"{name}.stored")
        finish(node, write.op("Cast", [rows], {"to": dtype}, name=name))

    def _table_form(self, weight: str, *, of_tokens: bool) -> Form:
        """The form of a lookup's table: blocks only for one of tokens, and where its rows are whole blocks."""
        precision = self.precision_of(weight)
        if precision.channels:
            binding = dense_binding(weight, self.sources[weight], self.precision.dtype)
            return Floats(binding, binding.operands[0])
        form = self._form(weight)
        quantized_here = precision.bits is not None and not of_tokens
        in_blocks = isinstance(form, Blocks) and form.serves_lookups
        if isinstance(form, Floats) or (in_blocks and not quantized_here):
            return form
        binding = dense_binding(weight, self.sources[weight], self.precision.dtype)
        return Floats(binding, binding.operands[0])


def _reads_tokens(ids: ir.Value) -> bool:
    """Whether a lookup's indices are the graph's token ids, as they came or in another integer type or shape."""
    node = ids.producer()
    while node is not None and node.op_type in ("Cast", "Reshape") and node.inputs[0] is not None:
        ids = node.inputs[0]
        node = ids.producer()
    return ids.name == TOKENS


def weights_of(node: ir.Node) -> list[str]:
    """The matrices that an abstract product names."""
    keys = {"Linear": ("weight",), "Experts": ("up", "down"), "ExpertProduct": ("weight",)}.get(node.op_type, ())
    return [node.attributes[key].as_string() for key in keys]


def _module(weight: str) -> str:
    """The name of the module that owns a weight; its output value carries it, so that a proof can find it."""
    module = weight.removesuffix(".weight")
    return module if module != weight else f"{weight}.output"  # a value must not have the weight's own name


def _stacked(name: str, forms: Sequence[Form]) -> Blocks | Channels:
    """Weights that are alike, one below the other."""
    if isinstance(forms[0], Channels):
        return stack_channels(name, [form for form in forms if isinstance(form, Channels)])
    return stack_blocks(name, [form for form in forms if isinstance(form, Blocks)])


def in_rows(form: Blocks) -> Blocks:
    """Blocks whose codes are a matrix of bytes, as lookups want them."""
    codes = replace(form.codes, dtype=ir.DataType.UINT8, shape=_row_shape(form.codes))
    return replace(form, codes=codes, binding=replace(form.binding, operands=(codes, *form.binding.operands[1:])))


def _row_shape(operand: Operand) -> tuple[int, int]:
    return operand.shape[0], operand.nbytes // operand.shape[0]


def _initializer(name: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
