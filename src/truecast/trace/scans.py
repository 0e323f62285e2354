"""The seam of selective scans: the functions that transformers names after the kernels of the mamba_ssm package.

Data flow: an author's layer asks the cache for the state to go on from → calls such a function → the seam leaves one
operator that begins with that state. The author's own code begins with it for a single token only: he computes a longer
text from its start, where the graph may go on behind any past.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from truecast.dialects.scan import KNOWN, ScanForm, emit, form_of, recognise
from truecast.trace.caches import GraphCache
from truecast.trace.context import LeafMismatch


@dataclass
class ScanSeam:
    """Stands in for an author's scans while a trace runs; `unfaked` leaves the trace's modes for a probe."""

    unfaked: Callable[[], Any]
    cache: GraphCache | None = None
    _checked: dict[Any, bool] = field(default_factory=dict)

    def __call__(self, author: Callable[..., Any], form: ScanForm, *args: Any, **kwargs: Any) -> Any:
        """The author's call, going on from the state that his layer has asked the cache for."""
        if author not in self._checked:
            with self.unfaked():
                self._checked[author] = recognise(author, form)
        unknown = [name for name, value in kwargs.items() if isinstance(value, Tensor) and name not in KNOWN]
        if not self._checked[author] or unknown:
            raise LeafMismatch(f"{author.__name__} computes a selective scan in its own way")
        if self.cache is None or self.cache.going_on is None:
            raise LeafMismatch(f"{author.__name__} is called by a layer that asks for no state")
        return form.scan(author, args, kwargs, self.cache.going_on, emit)


@contextmanager
def scan_seam(model: nn.Module, seam: ScanSeam) -> Iterator[None]:
    """Puts the seam in place of every selective scan beside the classes of `model`; undone on exit."""
    beside = {id(names): names for names in map(_globals, model.modules())}
    values = ((names, key, value, form_of(value)) for names in beside.values() for key, value in names.items())
    found = [(names, key, author, form) for names, key, author, form in values if form is not None]
    for names, key, author, form in found:
        names[key] = partial(seam, author, form)
    try:
        yield
    finally:
        for names, key, author, _ in found:
            names[key] = author


def _globals(module: nn.Module) -> dict[str, Any]:
    """The names that the author's forward sees beside its own."""
    names: dict[str, Any] = inspect.unwrap(type(module).forward).__globals__
    return names
