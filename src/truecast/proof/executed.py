"""The numbers inside the author's formulas, as its code uses them in one run: what no parameter holds.

| what | where it is seen |
|---|---|
| epsilon | an operator's argument `eps`; a number that is added before a root is taken |
| offset of a norm | a number that is added to a parameter |
| exact or tanh GELU | the operator's argument; `erf` or `tanh` where the author writes it out |
| experts of a token | the number of largest values that are picked |
| weights of experts | what is done with the values that were picked (`routing`) |
| scale, soft cap, limits | every number that is multiplied, divided by, added or cut off at |

Read from the operators that torch dispatches, so that it does not matter what an author calls an attribute.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import isclose
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from truecast.proof.routing import SAME_VALUES, Routes, Routing

LARGEST_EPSILON = 0.1
"""A number of this size or more that is added before a root is no epsilon."""
ROOTS = frozenset({"sqrt", "rsqrt"})
USED = frozenset({"mul", "div", "mul_", "div_", "add", "add_", "baddbmm", "addmm", "minimum", "maximum"})
USED |= {"clamp", "clamp_", "clamp_min", "clamp_max"}
"""Operators whose numbers are noted."""
HALVES = (0.5, -0.5)
"""Powers that are roots."""
EXPERTS = "_is_expert_parallel"
"""Attribute of transformers' modules of experts."""
CUBIC = 0.044715
"""What the cube is multiplied with in every tanh GELU (https://arxiv.org/abs/1606.08415)."""


@dataclass
class Formulas:
    """What one run used.

    `epsilons` and `offsets` are by the module that ran, and by the module whose parameter was there; `gelus` counts
    calls of the kinds "none" (exact) and "tanh"; `picked` are the numbers of largest values; `routings` what became of
    them for each call of experts, None where that is not known; `numbers` all factors, divisors, terms and bounds.
    """

    epsilons: dict[str, set[float]] = field(default_factory=lambda: defaultdict(set))
    offsets: dict[str, float] = field(default_factory=dict)
    gelus: Counter[str] = field(default_factory=Counter)
    picked: set[int] = field(default_factory=set)
    routings: list[Routing | None] = field(default_factory=list)
    numbers: set[float] = field(default_factory=set)


def formulas_of(module: nn.Module, run: Callable[[], Any]) -> Formulas:
    """Calls `run`, which calls `module`, and says what it used."""
    seen = Formulas()
    with ExitStack() as stack, torch.no_grad():
        running: list[str] = []
        for name, part in module.named_modules():
            stack.enter_context(_noted(part, name, running))
        owners = {id(p): name.rpartition(".")[0] for name, p in module.named_parameters(remove_duplicate=False)}
        watch = stack.enter_context(_Watch(seen, running, owners))
        for part in module.modules():
            if hasattr(part, EXPERTS):
                stack.enter_context(_given(part, watch.routes.experts))
        run()
    seen.routings = watch.routes.found
    return seen


@contextmanager
def _noted(part: nn.Module, name: str, running: list[str]) -> Iterator[None]:
    """Notes a module's name in `running` while it runs."""
    before = part.register_forward_pre_hook(lambda *_: running.append(name))
    after = part.register_forward_hook(lambda *_: (running.pop(), None)[1], always_call=True)
    try:
        yield
    finally:
        before.remove()
        after.remove()


@contextmanager
def _given(part: nn.Module, take: Callable[[tuple[Any, ...]], None]) -> Iterator[None]:
    """Calls `take` with what a module is given, whenever it runs."""
    hook = part.register_forward_pre_hook(lambda _, args, named: take((*args, *named.values())), with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes numbers that operators are called with. Tensors that lead to one are kept, so that no id is used twice."""

    def __init__(self, seen: Formulas, running: list[str], owners: dict[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen, self.running, self.owners = seen, running, dict(owners)
        self.added: dict[int, float] = {}
        self.cubic = False
        self.routes = Routes()
        self.kept: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = str(func).split(".")[1]
        given = {a.name: v for a, v in zip(func._schema.arguments, args, strict=False)} | kwargs
        values = [_number(value) for value in given.values()]
        self.routes.note(name, given, result, _number)
        if name in USED:
            self.seen.numbers.update(value for value in values if value is not None)
            self.cubic = self.cubic or any(value is not None and isclose(value, CUBIC) for value in values)
        if name in ("add", "add_"):
            self._add(given, result)
        elif name in ROOTS or (name == "pow" and _number(given.get("exponent")) in HALVES):
            self._root(given.get("self"))
        elif name == "gelu":
            self.seen.gelus[given.get("approximate", "none")] += 1
        elif name == "erf" or (name == "tanh" and self.cubic):
            self.seen.gelus["none" if name == "erf" else "tanh"] += 1
            self.cubic = False
        elif name == "topk":
            self.seen.picked.add(int(given["k"]))
        elif name in SAME_VALUES and id(given.get("self")) in self.owners:
            self._keep(result, self.owners, self.owners[id(given["self"])])
        if _number(given.get("eps")) is not None:
            self._epsilon(float(given["eps"]), given)
        return result

    def _keep(self, tensor: Any, where: dict[int, Any], what: Any) -> None:
        where[id(tensor)] = what
        self.kept.append(tensor)

    def _add(self, given: dict[str, Any], result: Any) -> None:
        for one, other in (("self", "other"), ("other", "self")):
            number = _number(given.get(other))
            if number is None or _number(given.get(one)) is not None:
                continue
            owner = self.owners.get(id(given.get(one)))
            if owner is not None:
                self.seen.offsets[owner] = number
            if 0 < number < LARGEST_EPSILON:
                self._keep(result, self.added, number)

    def _root(self, tensor: Any) -> None:
        if id(tensor) in self.added:
            self.seen.epsilons[self.running[-1] if self.running else ""].add(self.added[id(tensor)])

    def _epsilon(self, value: float, given: dict[str, Any]) -> None:
        places = {self.owners[id(tensor)] for tensor in given.values() if id(tensor) in self.owners}
        for place in places | set(self.running[-1:]):
            self.seen.epsilons[place].add(value)


def _number(value: Any) -> float | None:
    """The value of a number, or of a tensor of one element without axes."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    return float(value) if isinstance(value, Tensor) and value.ndim == 0 and value.numel() == 1 else None
