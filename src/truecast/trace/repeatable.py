"""Whether a module is a function of its inputs: its outputs may follow neither from chance nor from earlier calls.

Data flow: the author's module is called at one point → one with its weights is called again, and must give the same;
one of fake tensors has no numbers to compare, so random numbers are followed from the operator that draws them to the
outputs → in both cases, what the call changed in the module itself is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from truecast.errors import InputError
from truecast.trace.author import AuthorModule, try_call

REPEATED = 1e-5
"""Distance of two results of one computation, in parts of the largest value: a tenth of what the proof lets a graph be
off by. Threads and alignment may change the order of a float32 sum; chance changes more."""
Plain = bool | int | float | str | None
RATES = ("p", "dropout_p", "train", "training")
"""Arguments of operators that draw random numbers only where these are neither zero nor False."""


class RandomNumbers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows random numbers through the calls made while it is active; `source` names the operator of the first."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        """Nothing was drawn yet."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.source = ""
        self._reached: dict[int, Any] = {}  # keeps what it names, so that no address is used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operator; what it makes of random numbers is random, and so is what it writes them into."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        drawn = _draws(func, args, kwargs)
        if drawn or any(self.reach(leaf) for leaf in tree_leaves((args, kwargs))):
            if drawn and not self.source:
                self.source = str(func).rpartition(".")[0].removeprefix("aten.")
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    self._reached[_place(leaf)] = leaf
        return result

    def reach(self, value: Any) -> bool:
        """Whether a value is a tensor made of random numbers."""
        return isinstance(value, Tensor) and _place(value) in self._reached


def _draws(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operator, given these arguments, takes numbers from torch's generator."""
    if torch.Tag.nondeterministic_seeded not in getattr(func, "tags", ()):
        return False
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    given = {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()} | given
    return all(given[name] is None or bool(given[name]) for name in RATES if name in given)


def _place(tensor: Tensor) -> int:
    """Where a tensor's values lie: the same for its views."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):  # sparse tensors have none
        return id(tensor)


@contextmanager
def watched(module: nn.Module, outputs: Callable[[], Any]) -> Iterator[None]:
    """Watches a call of a module of fake tensors, made while the context lasts.

    Raises InputError when `outputs` follow from random numbers, or when the call exchanges parts of the module.
    """
    kind, before = type(module).__name__, parts(module)
    with RandomNumbers() as random:
        yield
    if any(random.reach(leaf) for leaf in tree_leaves(outputs())):
        raise InputError(
            f"{kind} draws random numbers when it is called ({random.source}), so that its outputs are no function of "
            "its inputs; turn that off in its configuration or its code."
        )
    _require_parts(kind, before, parts(module))


def _require_parts(kind: str, before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Raises InputError where modules came, went, or have another class."""
    if exchanged := [text for name, text in changes(before, after).items() if name.endswith(CLASS)]:
        raise InputError(
            f"{kind} changes itself while it runs ({exchanged[0]}), so that what it computes follows from what it was "
            "given before; set its configuration to the one that it changes to, or change its code."
        )


def require_function(author: AuthorModule, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """The module's outputs by name, for inputs that forward() must take.

    Raises InputError when it does not, when the outputs follow from chance or from earlier calls, or when the call
    exchanges parts of the module.
    """
    outputs: dict[str, Tensor] = {}
    if author.mode is not None:
        with watched(author.module, lambda: outputs):
            outputs = try_call(author, tensors)
        return outputs
    kind, before = type(author.module).__name__, parts(author.module)
    outputs = {name: tensor.clone() for name, tensor in try_call(author, tensors).items()}
    _require_parts(kind, before, parts(author.module))
    _require_same(kind, outputs, try_call(author, tensors), changes(before, parts(author.module)))
    return outputs


def _require_same(
    kind: str,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    changed: Mapping[str, str],
) -> None:
    apart = {name: apart_by(first[name], second[name]) for name in first if name in second}
    worst = max(apart, key=lambda name: apart[name])
    if apart[worst] > REPEATED or first.keys() != second.keys():
        found = next(iter(changed.values()), "")
        why = f" ({found})" if found else " or from random numbers"
        raise InputError(
            f"{kind} called twice with the same inputs gives two results ({worst} differs by {apart[worst]:.1e} of its "
            f"largest value); they must follow from the inputs alone, not from what it was given before{why}."
        )


def apart_by(first: Tensor, second: Tensor) -> float:
    """The largest distance of two results, in parts of the largest value; infinite for unlike shapes or NaNs."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return float("inf")
    if not first.is_floating_point():
        return 0.0 if bool((first == second).all()) else float("inf")
    left, right = first.double(), second.double()
    finite = left.isfinite() & right.isfinite()
    same = (left == right) | (left.isnan() & right.isnan())
    if not bool((finite | same).all()):
        return float("inf")
    left, right = left[finite], right[finite]
    largest = float(left.abs().max()) if left.numel() else 0.0
    return float((left - right).abs().max()) / largest if largest else float(bool((left != right).any()))


CLASS = "'s class"


def parts(module: nn.Module) -> dict[str, str]:
    """The plain attributes and the class of every module in `module`, by their full names, in words."""
    found: dict[str, str] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        found[f"{name or 'the module'}{CLASS}"] = type(part).__name__
        found |= {f"{name}.{key}".removeprefix("."): repr(value) for key, value in settings_of(part).items()}
    return found


def settings_of(module: nn.Module) -> dict[str, Plain]:
    """The attributes of one module that are plain values."""
    return {key: value for key, value in module.__dict__.items() if isinstance(value, Plain)}


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """What differs between two results of `parts`, by name, in words."""
    names = dict.fromkeys([*before, *after])
    return {
        name: f"{name} is {after.get(name, 'gone')} and was {before.get(name, 'not there')}"
        for name in names
        if before.get(name) != after.get(name)
    }
