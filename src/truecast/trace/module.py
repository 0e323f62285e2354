"""The trace of a module that keeps no cache: encoders, classifiers, anything with tensors in and tensors out.

Data flow: `AuthorModule` → examples of sizes that stay apart from 1 → torch.export with lowered leaves → a look at
which axes stayed free, and how far → ONNX graph with abstract operators whose axes carry the names asked for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import onnx_ir as ir
import torch
from onnx_ir.passes.common import InlinePass
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers import PreTrainedModel

from truecast.checkpoint.model import Checkpoint
from truecast.dialects.model import Dialect
from truecast.errors import InputError
from truecast.trace.author import RELATED, UNBOUNDED, AuthorModule, Axis, InputSpec
from truecast.trace.capture import forget_weights, name_ends, to_onnx
from truecast.trace.cleanup import clean
from truecast.trace.conversion import as_parameters, checkpoint_renamer
from truecast.trace.explaining import explained
from truecast.trace.leaves import lowered_leaves
from truecast.trace.masked_rows import masked_rows
from truecast.trace.remembered import results_not_kept
from truecast.trace.repeatable import require_function
from truecast.trace.rotary import rotary_seam
from truecast.trace.skeleton import real_buffers, tied_names
from truecast.trace.traced import Traced

Given = TypeVar("Given")
WRAPPER = "author."
"""Prefix of every parameter's name inside the traced module."""
LEAST = 2
"""Least size of an axis during the trace: torch.export takes a size of 1 for a constant."""


@dataclass(frozen=True, kw_only=True)
class ModuleTrace(Traced):
    """A traced module; `axes` are its free axes by name."""

    axes: Mapping[str, Axis]


class Recorded(nn.Module):
    """The author's call as a graph sees it: tensors in, tensors out, flat."""

    def __init__(self, author: AuthorModule, note: Callable[[list[str]], None]) -> None:
        super().__init__()
        self.author, self.call, self.note = author.module, author, note

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        """One tensor for every input, in order; the outputs in the order whose names were noted."""
        outputs = self.call(tensors)
        self.note(list(outputs))
        return list(outputs.values())


def trace_module(author: AuthorModule, dialect: Dialect) -> ModuleTrace:
    """Traces a module for `dialect`.

    Raises:
        InputError: it does not take the examples, its code cannot be traced, or an axis cannot be as free as asked.
    """
    noted: list[list[str]] = []
    names = [spec.name for spec in author.inputs]
    with author.mode or nullcontext():
        examples = roomy(author.inputs)
        require_function(author, examples)
    with ExitStack() as stack:
        stack.enter_context(results_not_kept(author.module))
        rotary = stack.enter_context(rotary_seam(author.module, dialect.rotary))
        counts = stack.enter_context(lowered_leaves(author.module, dialect))
        step = Recorded(author, noted.append).eval()
        stack.enter_context(explained(f"{type(author.module).__name__} cannot be traced", author.way_out))
        with author.mode or nullcontext():
            program = _export(step, author, examples)
        graph = to_onnx(program, names, noted[-1], dialect.opset)
        counts = Counter(counts)
    forget_weights(graph, step, WRAPPER)
    InlinePass()(graph)
    clean(graph)
    name_ends(graph.graph, names, noted[-1])  # cleaning may have made one value of two equal outputs
    _name_axes(graph, author)
    if any(seam.calls for seam in rotary):
        counts["rotary"] = sum(node.op_type == "Rotary" for node in graph.graph)
    return traced(author, graph, counts)


def roomy(inputs: Sequence[InputSpec]) -> list[Tensor]:
    """The examples, repeated along free axes of size 1 so that their size is no constant."""
    grown = []
    for spec in inputs:
        example = spec.example
        for index, axis in spec.axes.items():
            if axis.of:
                continue
            if axis.high == 1:
                raise InputError(f"The axis {axis} of {spec.name} has one size only; leave it out.")
            if example.shape[index] < LEAST:
                example = example.repeat_interleave(LEAST, index)
        grown.append(example)
    return grown


def _export(step: nn.Module, author: AuthorModule, examples: Sequence[Tensor]) -> ExportedProgram:
    shapes = tuple(dict.fromkeys(spec.axes, Dim.AUTO) or None for spec in author.inputs)
    with torch.no_grad(), masked_rows(author.module):
        program = torch.export.export(step, tuple(examples), dynamic_shapes=(shapes,), strict=False)
    require_ranges(program, author)
    _require_whole_pools(program, author)
    return program


def _inputs_of(program: ExportedProgram) -> list[Any]:
    names = set(program.graph_signature.user_inputs)
    return [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]


def require_ranges(program: ExportedProgram, author: AuthorModule) -> None:
    """Every axis must be free over the sizes asked for: torch.export narrows a range where the code takes branches."""
    limits = {str(symbol): bounds for symbol, bounds in program.range_constraints.items()}
    found = [
        _Found(spec.name, index, axis, str(node.meta["val"].shape[index]))
        for spec, node in zip(author.inputs, _inputs_of(program), strict=True)
        for index, axis in spec.axes.items()
    ]
    owners: dict[str, _Found] = {}
    for one in found:
        if one.size.isdigit():
            raise InputError(
                f"The model fixes {one} at {one.size}; it cannot be cast with that axis free. {_other_way(author, one)}"
            )
        if one.size.isidentifier() and not one.axis.of:
            owners.setdefault(one.size, one)
    for one in found:
        _require_relation(one, owners)
        if one.axis.of:
            continue
        if one.size not in limits:
            raise InputError(f"The model takes only sizes of the form {one.size} for {one}; leave it fixed.")
        owner = owners[one.size]
        if owner.axis.name != one.axis.name:
            raise InputError(f"The model takes one size only for {owner} and {one}; give them one name.")
        _require_range(one.axis, str(one), limits[one.size])


def _other_way(author: AuthorModule, one: _Found) -> str:
    """What to do about an axis that torch.export fixed: it unrolls torch's own recurrent layers, too."""
    found = next((type(part).__name__ for part in author.module.modules() if isinstance(part, nn.RNNBase)), None)
    if found is not None:
        return f"The exporter unrolls nn.{found}; pass --exporter torchscript, which keeps it whole."
    if author.is_pretrained:
        return f"Choose another model, or name with --dynamic the axes to leave free, without {one.axis.name}."
    return f"Leave it out of --dynamic (`dynamic`), or change what the code does for each size of {one.axis.name}."


def _require_whole_pools(program: ExportedProgram, author: AuthorModule) -> None:
    """ONNX's pooling has windows of one size: what divides a free axis into parts would keep that of the example."""
    for node in program.graph.nodes:
        if not str(node.target).startswith("aten.adaptive_"):
            continue
        parts = node.args[1]
        free = [str(size) for size in node.args[0].meta["val"].shape[-len(parts) :] if not str(size).isdigit()]
        if free and any(part != 1 for part in parts):
            raise InputError(
                f"{type(author.module).__name__} divides a free axis into parts ({str(node.target).split('.')[1]} to "
                f"{list(parts)}), for which ONNX has no pooling; leave that axis fixed, or pool to 1."
            )


@dataclass(frozen=True)
class _Found:
    """A free axis and the size that the trace gave it: a symbol, or an expression of one."""

    input: str
    index: int
    axis: Axis
    size: str

    def __str__(self) -> str:
        return f"axis {self.index} of {self.input} ({self.axis.name})"


def _require_relation(one: _Found, owners: Mapping[str, _Found]) -> None:
    """An axis that follows from another must do so as asked, and one that was asked for alone must not."""
    related = RELATED.fullmatch(one.size.replace(" ", ""))
    owner = owners.get(related["of"]) if related is not None else None
    if related is None or owner is None:
        if one.axis.of and not one.size.isidentifier():
            raise InputError(f"The model takes only sizes of the form {one.size} for {one}; leave it fixed.")
        return
    real = Axis.following(owner.axis.name, int(related["factor"] or 1), int(related["plus"] or 0))
    if real.name != (one.axis.name if one.axis.of else owner.axis.name):
        raise InputError(
            f"The model takes only the size {real} for {one}, where {owner.axis.name} is axis {owner.index} of "
            f"{owner.input}; ask for that, as {one.input}.{one.index}={real}."
        )


def _require_range(axis: Axis, where: str, found: Any) -> None:
    low, high = int(found.lower), min(found.upper, UNBOUNDED)
    if low > max(axis.low, LEAST) or high < (axis.high or UNBOUNDED):
        end = "" if high >= UNBOUNDED else str(int(high))
        raise InputError(
            f"The model does something else beyond the sizes {low}..{end} of {where}; "
            f"ask for these, as {axis.name}={low}..{end}, or change its code."
        )


def _name_axes(graph: ir.Model, author: AuthorModule) -> None:
    """The names asked for in place of the trace's symbols, in inputs and outputs."""
    names: dict[str, str] = {}
    for spec, value in zip(author.inputs, graph.graph.inputs, strict=True):
        assert value.shape is not None
        for index, axis in spec.axes.items():
            symbol = str(_symbol(value.shape[index]))
            if symbol.isidentifier():  # others follow from one
                names[symbol] = axis.name
    for value in (*graph.graph.inputs, *graph.graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape(_renamed(value.shape, names))


def _symbol(dim: Any) -> Any:
    return dim if isinstance(dim, int) else dim.value


def _renamed(shape: ir.Shape, names: Mapping[str, str]) -> Iterator[int | str | None]:
    for dim in shape:
        size = _symbol(dim)
        if isinstance(size, str):
            size = re.sub(r"[A-Za-z_]\w*", lambda m: names.get(m[0], m[0]), size).replace(" ", "")
        yield size


def traced(author: AuthorModule, graph: ir.Model, counts: Counter[str]) -> ModuleTrace:
    """The graph with what its names mean; buffers that no checkpoint stores are made by the author's code."""
    _require_no_float64(author, graph.graph)
    module = author.module
    parameters = {name: tuple(p.shape) for name, p in module.named_parameters(remove_duplicate=False)}
    persistent = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    names = {id(part): name for name, part in module.named_modules()}
    missing = [
        name
        for name, value in graph.graph.initializers.items()
        if value.const_value is None and name not in parameters and name not in persistent
    ]
    embedding, head = _tables(module) if isinstance(module, PreTrainedModel) else (None, None)
    buffers: dict[str, Tensor] = {name: module.get_buffer(name) for name in missing}
    tied = shared_names(module)
    rename: Callable[[str], str] = _same
    merge: Callable[[Checkpoint], Checkpoint] = _same
    if author.is_pretrained:  # names and buffers are as transformers has them when it loads a checkpoint
        assert isinstance(module, PreTrainedModel)
        buffers = dict(real_buffers(module, missing))
        tied, rename = tied_names(module), checkpoint_renamer(module)
        merge = partial(as_parameters, model=module)
    return ModuleTrace(
        model=graph,
        buffers=buffers,
        parameters={**parameters, **persistent},
        tied=tied,
        embedding=f"{names[id(embedding)]}.weight" if embedding is not None else "",
        head=f"{names[id(head)]}.weight" if head is not None else "",
        rename=rename,
        merge=merge,
        lowered=counts,
        axes=author.axes,
    )


def _require_no_float64(author: AuthorModule, graph: ir.Graph) -> None:
    wide = [node for node in graph if any(value.dtype is ir.DataType.DOUBLE for value in node.outputs)]
    if wide:
        raise InputError(
            f"{type(author.module).__name__} computes in float64 ({wide[0].op_type}, {len(wide)} operators in all), "
            "which runtimes hardly have kernels for; compute in float32."
        )


def _same(given: Given) -> Given:
    return given


def _tables(module: PreTrainedModel) -> tuple[nn.Module | None, nn.Module | None]:
    """The embedding of the tokens and the head that gives logits of tokens, where there are any."""
    try:
        embedding: Any = module.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None, None
    head: Any = module.get_output_embeddings()  # type: ignore[no-untyped-call]
    known = isinstance(embedding, nn.Embedding)
    return (embedding if known else None), (head if known and isinstance(head, nn.Linear) else None)


def shared_names(module: nn.Module) -> dict[str, str]:
    """Parameters that are one tensor: each further name → the first."""
    first: dict[int, str] = {}
    shared = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            shared[name] = first[id(parameter)]
    return shared
