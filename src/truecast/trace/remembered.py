"""Results that an author's code keeps from one call to the next, in functools.lru_cache.

They belong to the function, not to the module: what it computed under a trace (a tensor without values) or for other
inputs would be given to every later call with equal arguments, the reference's as well. DINOv3's centers of patches and
the anchors of RT-DETR are kept so.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

CACHED = type(functools.lru_cache(lambda: None))


@contextmanager
def results_not_kept(module: nn.Module) -> Iterator[None]:
    """No call inside sees a result from before, and none from inside is there afterwards."""
    functions = caching_functions(module)
    forget_results(functions)
    try:
        yield
    finally:
        forget_results(functions)


def forget_results(functions: Iterable[Any]) -> None:
    """Empties the caches of these functions."""
    for function in functions:
        function.cache_clear()


def caching_functions(module: nn.Module) -> list[Any]:
    """Every caching function of the files in which the classes of `module` and its parts are, and of these classes.

    Functions that these files import, such as transformers' of what is installed, keep what they have.
    """
    classes = {base for part in module.modules() for base in type(part).__mro__ if not _is_torch(base)}
    files = {kind.__module__ for kind in classes if kind.__module__ in sys.modules}
    holders = [*classes, *(sys.modules[name] for name in files)]
    found = [function for holder in holders for function in _caching(vars(holder).values())]
    return [function for function in found if function.__module__ in files]


def _is_torch(kind: type) -> bool:
    return kind is object or kind.__module__.partition(".")[0] == "torch"


def _caching(values: Iterable[Any]) -> Iterator[Any]:
    """The caching functions among `values`, and those that a function among them encloses."""
    for value in values:
        if isinstance(value, CACHED):
            yield value
            continue
        for cell in getattr(value, "__closure__", None) or ():
            try:
                enclosed = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
            if isinstance(enclosed, CACHED):
                yield enclosed
