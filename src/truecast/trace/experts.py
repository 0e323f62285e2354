"""The experts seam: transformers' own interface for modules of experts.

Data flow: a layer's router chooses experts and weighs them, in its own code → calls the module of experts, which asks
transformers' interface for its function → the seam emits the dialect's operators for this module's form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from truecast.dialects.experts import ExpertsForm, emit_all, emit_fused, recognise
from truecast.dialects.model import Dialect
from truecast.dialects.probe import structure
from truecast.errors import InputError
from truecast.trace.seams import SEAM

AUTHOR = "eager"
"""transformers' name for the loop over experts that the author wrote."""


@dataclass
class ExpertsSeam:
    """Stands in for the experts functions of transformers; `forms` are those of a model's modules, by their names."""

    dialect: Dialect
    names: dict[int, str]
    forms: dict[str, ExpertsForm] = field(default_factory=dict)

    def __call__(self, module: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """The author's call (hidden_states [tokens, width], index and weights [tokens, k])."""
        x, index, share = (*args, *kwargs.values())
        name = self.names[id(module)]
        form = self.forms[name]
        emit = emit_fused if self.fuses(form) else emit_all
        return emit(name, module, form, x, index, share)

    def fuses(self, form: ExpertsForm) -> bool:
        """Whether the dialect has one operator for experts of this form."""
        return form.gate is not None and form.gate.activation in self.dialect.experts

    @property
    def counts(self) -> Counter[str]:
        """How many modules became one operator."""
        fused = sum(map(self.fuses, self.forms.values()))
        return Counter({"experts": fused} if fused else {})

    @property
    def reasons(self) -> dict[str, str]:
        """Why modules became products with all experts."""
        if not self.forms or all(map(self.fuses, self.forms.values())):
            return {}
        return {"experts": "the dialect has no operator with their activation, so every expert is computed"}


def modules_of_experts(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that call transformers' interface, by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "_is_expert_parallel")}


def forms_of(model: nn.Module) -> dict[str, ExpertsForm]:
    """The form of every module of experts; raises InputError for one that computes something else."""
    forms: dict[str, ExpertsForm] = {}
    alike: dict[Any, ExpertsForm | None] = {}
    for name, module in modules_of_experts(model).items():
        kind = structure(module)
        if kind not in alike:
            alike[kind] = recognise(module)
        form = alike[kind]
        if form is None or getattr(module, "has_post_expert_norm", False):
            raise InputError(
                f"The experts {name} ({type(module).__name__}) compute something else than two products with an "
                "activation between them; they cannot be cast yet."
            )
        forms[name] = form
    return forms


@contextmanager
def experts_seam(model: nn.Module, dialect: Dialect) -> Iterator[ExpertsSeam]:
    """Registers the seam with transformers and makes the experts of `model` use it; undone on exit."""
    modules = modules_of_experts(model)
    seam = ExpertsSeam(dialect, {id(module): name for name, module in modules.items()}, forms_of(model))
    configs: dict[int, Any] = {id(module.config): module.config for module in modules.values()}
    before = {key: getattr(config, "_experts_implementation", None) for key, config in configs.items()}
    functions: dict[str, Any] = ALL_EXPERTS_FUNCTIONS._global_mapping
    functions[SEAM] = seam
    try:
        for config in configs.values():
            config._experts_implementation = SEAM
        yield seam
    finally:
        for key, config in configs.items():
            config._experts_implementation = before[key]
        functions.pop(SEAM, None)
