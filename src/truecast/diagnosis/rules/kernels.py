"""TC1xx: does the runtime know the operators, and has the provider kernels for them?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import onnx_ir as ir

from truecast.diagnosis.evidence import Evidence, label
from truecast.diagnosis.inference import forbidden_dtypes, type_name
from truecast.diagnosis.model import SHOWN_NAMES, Seen, seen
from truecast.diagnosis.placement import Place
from truecast.diagnosis.rules.rule import ERROR, WARNING, Rule
from truecast.diagnosis.schemas import EXPANDED_CONTRIB, standard
from truecast.diagnosis.ways import way_to_know, ways

LARGEST_OPSET, LARGEST_IR = 26, 13
"""What ONNX Runtime 1.31 loads (opset 27 only with an environment variable)."""
FEW_COPIES = 8
"""Memcpy nodes that a graph may have at its ends without a measurable cost."""
BUILT_IN = ("", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")
HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
STANDARD_ATTENTION, MASK, PAST_KEY, PRESENT_KEY = "Attention", 3, 4, 1
MOE_THIRD_WEIGHT = 6
FASTER_AS_OTHERS = frozenset({"Swish", *EXPANDED_CONTRIB})
"""Operators made of parts, which ONNX Runtime fuses into one kernel where they are written out."""


def operators(nodes: Iterable[ir.Node], evidence: Evidence) -> str:
    """The operators of some nodes with their versions, dtypes and numbers: "3 Elu-22 (float)"."""
    counts = Counter(_operator(node, evidence) for node in nodes)
    shown = [f"{count} {name}" for name, count in counts.most_common(SHOWN_NAMES)]
    return ", ".join(shown) + (", …" if len(counts) > SHOWN_NAMES else "")


def _operator(node: ir.Node, evidence: Evidence) -> str:
    schema = evidence.schema(node)
    version = f"-{schema.since}" if schema is not None else ""
    prefix = f"{standard(node.domain)}." if standard(node.domain) else ""
    dtypes = dict.fromkeys(
        evidence.types[value] for value in node.inputs if value in evidence.types and value is not None
    )
    names = ", ".join(type_name(dtype).removeprefix("tensor(").rstrip(")") for dtype in dtypes)
    return f"{prefix}{node.op_type}{version} ({names})"


def opset_too_new(evidence: Evidence) -> Seen | None:
    """The stamped opset is one that the runtime refuses."""
    opset = evidence.opsets.get("", 0)
    return (
        Seen((), 1, f"opset {opset}, and ONNX Runtime 1.31 loads up to {LARGEST_OPSET}")
        if opset > LARGEST_OPSET
        else None
    )


def ir_too_new(evidence: Evidence) -> Seen | None:
    """The same for the version of the file's own format."""
    version = evidence.model.ir_version
    return (
        Seen((), 1, f"IR {version}, and ONNX Runtime 1.31 loads up to {LARGEST_IR}") if version > LARGEST_IR else None
    )


def unknown_operator(evidence: Evidence) -> Seen | None:
    """An operator that does not exist at the stamped opset, as a failed version conversion leaves behind."""
    unknown = [n for n in evidence.nodes if standard(n.domain) in BUILT_IN and evidence.schema(n) is None]
    return seen(map(label, unknown), f"at opset {evidence.opsets.get('', 0)}", fix=way_to_know(unknown, evidence))


def foreign_operator(evidence: Evidence) -> Seen | None:
    """Operators of a domain that needs a library of its own."""
    foreign = [node for node in evidence.nodes if standard(node.domain) not in BUILT_IN]
    return seen(map(label, foreign), f"domains {', '.join(sorted({node.domain for node in foreign}))}")


def schema_broken(evidence: Evidence) -> Seen | None:
    """Attributes or numbers of inputs that the runtime's own version of the operator does not have."""
    return seen(
        f"{label(node)} ({fault})"
        for node in evidence.nodes
        if node.op_type != "QAttention"
        for fault in _schema_faults(node, evidence)
    )


def _schema_faults(node: ir.Node, evidence: Evidence) -> Iterator[str]:
    schema = evidence.schema(node)
    if schema is None:
        return
    yield from (
        f"{schema.name}-{schema.since} has no {name}" for name in node.attributes if name not in schema.attributes
    )
    given = len(node.inputs)
    if not schema.least_inputs <= given <= schema.most_inputs:
        yield f"{given} inputs, not {schema.least_inputs} to {schema.most_inputs}"


def no_kernel(evidence: Evidence) -> Seen | None:
    """A node that no provider of the build can run: the model does not load."""
    nodes = [node for node in evidence.placement.at(Place.NOWHERE) if not _has_other_finding(node, evidence)]
    return seen(map(label, nodes), operators(nodes, evidence), fix=ways(nodes, evidence, evidence.tables))


def _has_other_finding(node: ir.Node, evidence: Evidence) -> bool:
    """Whether the cause is bfloat16 on the processor, or a dtype that the operator does not allow anywhere."""
    schema = evidence.schema(node)
    if schema is not None and forbidden_dtypes(node, schema, evidence.types):
        return True
    return evidence.provider == "cpu" and any(
        evidence.types.get(value) is ir.DataType.BFLOAT16
        for value in (*node.inputs, *node.outputs)
        if value is not None
    )


def falls_back(evidence: Evidence) -> Seen | None:
    """Nodes that the provider leaves to the processor for want of a kernel."""
    if evidence.provider == "cpu":
        return None
    nodes = [*evidence.placement.at(Place.HOST), *evidence.placement.at(Place.CAST)]
    return seen(map(label, nodes), operators(nodes, evidence), fix=ways(nodes, evidence, evidence.tables[:1]))


def copies_repeat(evidence: Evidence) -> Seen | None:
    """Many Memcpy nodes, or some in every layer."""
    copies, growing = evidence.placement.copies, evidence.placement.growing
    if len(copies) <= FEW_COPIES and not growing:
        return None
    per_layer = Counter(copy.layer for copy in copies if copy.layer is not None)
    layers = (
        f", about {len(copies) / len(per_layer):.0f} for each of {len(per_layer)} layers" if len(per_layer) > 1 else ""
    )
    names = [f"{'→ processor' if copy.to_host else '→ device'} {copy.value.name}" for copy in copies]
    growth = "; it grows with depth" if growing else "; it does not grow with depth"
    fix = None if falls_back(evidence) else OF_SIZES
    return seen(names, f"{len(copies)} Memcpy nodes predicted{layers}{growth}", fix=fix)


OF_SIZES = (
    "Every operator has a kernel on the device; what crosses are sizes that become tensors there, or bounds of loops: "
    "make them constants, or leave them where they are few."
)


def refuses_at_run(evidence: Evidence) -> Seen | None:
    """A kernel that is registered, and fails when it is run."""
    held = [(node, refusal) for node in evidence.nodes if (refusal := _refusal(node, evidence))]
    fixes = dict.fromkeys(fix for _, (_, fix) in held)
    return seen((f"{label(node)} ({reason})" for node, (reason, _) in held), fix=" ".join(fixes))


def _refusal(node: ir.Node, evidence: Evidence) -> tuple[str, str] | None:
    """Why a node will fail, and what it needs."""
    if node.op_type == STANDARD_ATTENTION and not standard(node.domain):
        has_past = len(node.inputs) > PAST_KEY and node.inputs[PAST_KEY] is not None
        has_present = len(node.outputs) > PRESENT_KEY and bool(node.outputs[PRESENT_KEY].name)
        if has_past and not has_present:
            return "it has a past and no present output", "Keep the present outputs, also where nothing reads them."
        flat = "its mask has one row for all queries, and the kernel wants one each"
        return (flat, "Expand the mask to [batch, 1, queries, keys].") if _has_flat_mask(node, evidence) else None
    if node.op_type == "MoE" and evidence.provider == "cpu":
        third = len(node.inputs) > MOE_THIRD_WEIGHT and node.inputs[MOE_THIRD_WEIGHT] is not None
        return ("the processor's kernel has no third weight", "Write the experts as QMoE.") if third else None
    return None


def gives_zeros(evidence: Evidence) -> Seen | None:
    """Experts in float16 whose weights are not normalized: the processor's kernel (1.31) weighs all with zero."""
    if evidence.provider != "cpu":
        return None
    return seen(
        label(node)
        for node in evidence.nodes
        if node.op_type == "MoE"
        and node.inputs[0] is not None
        and node.inputs[0].dtype == ir.DataType.FLOAT16
        and node.attributes.get_int("normalize_routing_weights", 0) == 0
    )


def _has_flat_mask(node: ir.Node, evidence: Evidence) -> bool:
    """A mask [batch, 1, 1, keys], which ONNX broadcasts and the processor's kernel refuses."""
    queries = evidence.dims(node.inputs[0])
    mask = evidence.dims(node.inputs[MASK]) if len(node.inputs) > MASK else None
    if evidence.provider != "cpu" or not queries or not mask or len(mask) < 2 or len(queries) < 3:
        return False
    return mask[-2] == 1 and queries[-2 if len(queries) == 4 else 1] != 1


def expanded(evidence: Evidence) -> Seen | None:
    """An operator without a kernel that runs as several others, although a form of it has one kernel."""
    parts = evidence.placement.at(Place.EXPANDED)
    nodes = [n for n in parts if _has_faster_form(n, evidence) and not _has_half(n, evidence)]
    return seen(map(label, nodes), operators(nodes, evidence))


def _has_faster_form(node: ir.Node, evidence: Evidence) -> bool:
    """Whether it takes several times as long as another form of it.

    Measured on a processor, ONNX Runtime 1.31: Swish 3 times as long as x * Sigmoid(x), a group norm of one channel a
    group 2.5 times as long as InstanceNormalization; Mish, HardSwish and other groups have no form with one kernel.
    """
    if node.op_type != "GroupNormalization":
        return node.op_type in FASTER_AS_OTHERS
    dims, groups = evidence.dims(node.inputs[0]), node.attributes["num_groups"].as_int()
    scale = evidence.dims(node.inputs[1])
    return groups in (dims[1] if dims and len(dims) > 1 else None, scale[0] if scale else None)


def _has_half(node: ir.Node, evidence: Evidence) -> bool:
    return evidence.provider == "cpu" and any(evidence.types.get(v) in HALVES for v in node.inputs if v is not None)


RULES = (
    Rule(
        "TC101",
        ERROR,
        "The opset is newer than the runtime",
        "The model does not load.",
        "Export at the lowest opset that has the operators: 18 to 24.",
        opset_too_new,
    ),
    Rule(
        "TC102",
        ERROR,
        "The file's IR version is newer than the runtime",
        "The model does not load.",
        "Set the file's ir_version to 13, or to 10 for older runtimes.",
        ir_too_new,
    ),
    Rule(
        "TC103",
        ERROR,
        "Operators that do not exist at the stamped opset",
        "The model does not load, although onnx.checker may pass it.",
        "Stamp the opset that the operators are from, export again at that opset, or export without them.",
        unknown_operator,
    ),
    Rule(
        "TC104",
        WARNING,
        "Operators of a custom domain",
        "The model loads only where their library is registered.",
        "Ship the library with the model, or export in standard operators.",
        foreign_operator,
    ),
    Rule(
        "TC105",
        ERROR,
        "Nodes that the runtime's own schema forbids",
        "The model does not load: INVALID_GRAPH.",
        "Write the node as the runtime's version of the operator has it (a window as a mask, for Attention).",
        schema_broken,
    ),
    Rule(
        "TC106",
        ERROR,
        "No kernel for an operator with these dtypes",
        "The model does not load: NOT_IMPLEMENTED.",
        "Cast to a dtype that has a kernel around the operator, or write it in other operators.",
        no_kernel,
    ),
    Rule(
        "TC107",
        WARNING,
        "The provider has no kernel, so nodes run on the processor",
        "Their inputs and outputs are copied between device and processor at every run.",
        "Export at an opset whose operator has a kernel, cast to dtypes that have one, or write it in other operators.",
        falls_back,
    ),
    Rule(
        "TC108",
        WARNING,
        "Memcpy nodes between device and processor",
        "Each waits for the device; dozens make a model several times slower.",
        "Give the operators at both ends kernels on one side, as the finding about operators without kernels says.",
        copies_repeat,
    ),
    Rule(
        "TC109",
        ERROR,
        "A kernel that loads and then refuses to run",
        "The first run fails.",
        "Keep all present outputs, expand masks to [batch, 1, queries, keys], write experts as QMoE.",
        refuses_at_run,
    ),
    Rule(
        "TC110",
        WARNING,
        "Operators without a kernel run as their parts",
        "Several kernels and their memory traffic instead of one.",
        "Write the operator in the form that has a kernel or fuses: Swish as x * Sigmoid(x), GroupNormalization of one "
        "channel a group as InstanceNormalization.",
        expanded,
    ),
    Rule(
        "TC112",
        ERROR,
        "A kernel that gives zeros",
        "Experts in float16 add nothing on the processor, and nothing says so.",
        "Set normalize_routing_weights=1 and multiply by the sum of the weights, or keep the operator in float32.",
        gives_zeros,
    ),
)
