"""Experts: products with one of several matrices for each token, an activation between the two, a weighted sum.

Data flow: an author's module of experts → `recognise` runs its own code and the formula of `ExpertsForm` side by side →
where the dialect's operator has the activation, `emit_fused`: one `truecast::Experts` that names the weights; elsewhere
`emit_all`: two products with the matrices of all experts (`truecast::ExpertProduct`), the author's activation between.

The operators (com.microsoft MoE and QMoE, ONNX Runtime 1.31, CPU) take the softmax of what they are given over all
experts, keep the k largest and divide by their sum. Given the logarithms of the author's own weights, and far less for
experts that were not chosen, they weigh by the author's weights over their sum; the sum is multiplied in afterwards.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from truecast.dialects.modules import PROBE_LIMITS, parameter_of
from truecast.dialects.probe import PROBE_SEED, agrees, author_call

EXPERTS, WIDTH, INNER, TOKENS, CHOSEN = 3, 6, 5, 7, 2
"""Sizes of the probe: all different, so that a mixed-up axis shows."""
UNCHOSEN = -1e4
"""Logarithm of the weight of an expert that was not chosen: its exponential is zero, and float16 holds it."""


@dataclass(frozen=True)
class Gate:
    """How the outputs of the first product become the inputs of the second.

    swiglu: g · σ(alpha · g) · (l + beta), g at most `limit`, l at most `limit` from zero; the rows of g and l alternate
    where `interleaved`, else all of g come first. silu, relu and identity are taken of every row.
    """

    activation: str
    alpha: float = 1.0
    beta: float = 0.0
    limit: float | None = None
    interleaved: bool = False

    @property
    def halves(self) -> bool:
        """Whether the rows of a gate lie in two halves; operators want them to alternate."""
        return self.activation == "swiglu" and not self.interleaved

    def __call__(self, x: Tensor) -> Tensor:
        """The formula over the last axis."""
        if self.activation != "swiglu":
            return PLAIN[self.activation](x)
        gate, linear = (x[..., 0::2], x[..., 1::2]) if self.interleaved else x.chunk(2, -1)
        if self.limit is not None:
            gate, linear = gate.clamp(max=self.limit), linear.clamp(-self.limit, self.limit)
        return gate * torch.sigmoid(self.alpha * gate) * (linear + self.beta)


def _identity(x: Tensor) -> Tensor:
    return x


PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": nn.functional.silu,
    "relu": nn.functional.relu,
    "identity": _identity,
}
ACTIVATIONS = frozenset({"swiglu", *PLAIN})
"""Activations of MoE and QMoE; their gelu is off by 2e-4 from either formula, and is not used."""


@dataclass(frozen=True)
class ExpertsForm:
    """What an author's experts compute.

    up, down: names of the weights, [experts, out, in], or [experts, in, out] where `transposed`. up_bias, down_bias:
    names, or empty. gate: what lies between, None where it is the author's own and no operator has it.
    """

    up: str
    down: str
    up_bias: str
    down_bias: str
    transposed: bool
    gate: Gate | None


def recognise(module: nn.Module) -> ExpertsForm | None:
    """The form of a module of experts, or None when it computes something else."""
    names = {name for name, parameter in module._parameters.items() if parameter is not None}
    up = next((name for name in ("gate_up_proj", "up_proj") if name in names), "")
    biases = [f"{name}_bias" if f"{name}_bias" in names else "" for name in (up, "down_proj")]
    if not up or names - {up, "down_proj", *biases} or any(p.ndim not in (2, 3) for p in module.parameters()):
        return None
    shape = module.get_parameter(up).shape
    turned = bool(getattr(module, "is_transposed", False))
    form = ExpertsForm(up, "down_proj", biases[0], biases[1], turned, _gate_of(module))
    return form if len(shape) == 3 and _computes(module, form) else None


def between(module: Any, x: Tensor) -> Tensor:
    """The author's own code between the two products."""
    result: Tensor = module._apply_gate(x) if getattr(module, "has_gate", True) else module.act_fn(x)
    return result


def _gate_of(module: nn.Module) -> Gate | None:
    generator = torch.Generator().manual_seed(PROBE_SEED)
    noise = torch.randn(TOKENS, 2 * INNER, generator=generator, dtype=torch.float64)
    probes = [limit / 2 * noise for limit in PROBE_LIMITS]
    got = [author_call(between, module, x) for x in probes]
    return next((g for g in _gates(module) if all(agrees(y, g(x)) for x, y in zip(probes, got, strict=True))), None)


def _gates(module: nn.Module) -> Iterator[Gate]:
    """Every formula that the module's own numbers allow."""
    yield from map(Gate, PLAIN)
    numbers = sorted({float(v) for v in module.__dict__.values() if isinstance(v, float) and v > 0})
    for interleaved in (False, True):
        for limit in (None, *numbers):
            for alpha in dict.fromkeys((1.0, *numbers)):
                for beta in (0.0, 1.0):
                    yield Gate("swiglu", alpha, beta, limit, interleaved)


def _computes(module: Any, form: ExpertsForm) -> bool:
    """Runs the author's own loop over experts and the formula on small random weights, in float64."""
    generator = torch.Generator().manual_seed(PROBE_SEED)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    twin: Any = nn.Module.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    twin.__dict__["num_experts"] = EXPERTS
    outer = (2 if getattr(module, "has_gate", True) else 1) * INNER
    shapes = {form.up: (EXPERTS, outer, WIDTH), form.down: (EXPERTS, WIDTH, INNER)}
    weights = {name: random(*shape) for name, shape in shapes.items()}
    biases = {name: random(EXPERTS, n) for name, n in ((form.up_bias, outer), (form.down_bias, WIDTH)) if name}
    stored = {name: w.transpose(1, 2).contiguous() if form.transposed else w for name, w in weights.items()} | biases
    twin.__dict__["_parameters"] = {name: nn.Parameter(value, requires_grad=False) for name, value in stored.items()}
    x, scores = random(TOKENS, WIDTH), random(TOKENS, EXPERTS)
    index = scores.topk(CHOSEN, -1).indices
    share = random(TOKENS, CHOSEN).abs()
    author = inspect.unwrap(type(module).forward)
    got = author_call(author, twin, x.clone(), index, share)
    inner = torch.einsum("ti,eoi->teo", x, weights[form.up]) + biases.get(form.up_bias, torch.zeros(()))
    middle = author_call(between, twin, inner)
    if middle is None:
        return False
    out = torch.einsum("tei,eoi->teo", middle, weights[form.down]) + biases.get(form.down_bias, torch.zeros(()))
    chosen = out.gather(1, index[..., None].expand(-1, -1, WIDTH))
    return agrees(got, (chosen * share[..., None]).sum(1))


def _named(name: str, form: ExpertsForm) -> dict[str, str]:
    """The weights of a module by their full names."""
    parts = {"up": form.up, "up_bias": form.up_bias, "down": form.down, "down_bias": form.down_bias}
    return {part: parameter_of(name, value) if value else "" for part, value in parts.items()}


def emit_fused(name: str, module: nn.Module, form: ExpertsForm, x: Tensor, index: Tensor, share: Tensor) -> Tensor:
    """One operator for x [tokens, width], the chosen experts and their weights [tokens, k]; same shape as x."""
    gate, shape = form.gate, module.get_parameter(form.up).shape
    assert gate is not None
    unchosen = torch.full((x.shape[0], shape[0]), UNCHOSEN, dtype=torch.float32)
    logits = unchosen.scatter(1, index, share.float().log())
    attributes: dict[str, Any] = {
        **_named(name, form),
        "module": name,
        "transposed": int(form.transposed),
        "halves": int(gate.halves),
        "k": index.shape[-1],
        "activation_type": gate.activation,
        "activation_alpha": gate.alpha,
        "activation_beta": gate.beta,
    }
    if gate.limit is not None:
        attributes["swiglu_limit"] = gate.limit
    result: Tensor = torch.onnx.ops.symbolic(
        "truecast::Experts",
        [x, logits.to(x.dtype), share.sum(-1, keepdim=True).to(x.dtype)],
        attributes,
        dtype=x.dtype,
        shape=x.shape,
        version=1,
    )
    return result


def emit_all(name: str, module: nn.Module, form: ExpertsForm, x: Tensor, index: Tensor, share: Tensor) -> Tensor:
    """Every expert's output for every token, of which those not chosen are weighed with zero; same shape as x."""
    names, experts = _named(name, form), module.get_parameter(form.up).shape[0]
    inner = between(module, _product(names["up"], names["up_bias"], form, module.get_parameter(form.up), x[None]))
    out = _product(names["down"], names["down_bias"], form, module.get_parameter(form.down), inner)
    weights = torch.zeros((x.shape[0], experts), dtype=x.dtype).scatter(1, index, share.to(x.dtype))
    return (out * weights.t().unsqueeze(-1)).sum(0)


def _product(weight: str, bias: str, form: ExpertsForm, parameter: Tensor, x: Tensor) -> Tensor:
    """x [1 or experts, tokens, in] times the matrices of all experts: [experts, tokens, out]."""
    experts, outputs, inputs = parameter.shape if not form.transposed else (parameter.shape[i] for i in (0, 2, 1))
    attributes: dict[str, Any] = {"weight": weight, "bias": bias, "transposed": int(form.transposed), "K": inputs}
    result: Tensor = torch.onnx.ops.symbolic(
        "truecast::ExpertProduct",
        [x],
        attributes,
        dtype=x.dtype,
        shape=[experts, x.shape[1], outputs],
        version=1,
    )
    return result
