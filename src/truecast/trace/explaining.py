"""What foreign code raises, in our words: an author's code, transformers, torch.export and torch's ONNX exporters.

Data flow: an exception and those it was raised from → the kind of trouble, and the author's line where it arose → one
sentence. The libraries' own messages are for their developers: they run over pages, and some end in colour codes.
"""

from __future__ import annotations

import linecache
import re
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.onnx.errors import UnsupportedOperatorError
from transformers.cache_utils import Cache, CacheLayerMixin

from truecast.errors import InputError, TruecastError

HERE = Path(__file__).parents[1]
STANDARD = Path(sysconfig.get_paths()["stdlib"])
PACKAGES = "site-packages"
MACHINERY = frozenset({"torch", "transformers", "onnxscript", "onnx", "onnx_ir", "huggingface_hub", "numpy", "sympy"})
"""Packages whose code is no author's, apart from the models of transformers."""
MODELS, AUTO = ("transformers", "models"), "auto"

VALUES_DECIDE = frozenset(
    {
        "DataDependentOutputException",
        "DynamicOutputShapeException",
        "GuardOnDataDependentSymNode",
        "PendingUnbackedSymbolNotFound",
    }
)
"""What torch raises where Python asks for the value of a tensor; no module of torch's offers all of them."""
DATA_DEPENDENT = re.compile(r"data-dependent|unbacked|unpack the object at pos")
"""The same said by an error of a general type; the last where a size is a tensor's value."""
COMPLEX = re.compile(r"complex|polar|view_as_real|_fft")
"""Operators that make or take complex numbers."""
CACHES = "cache_utils.py"
RECURRENT = re.compile(r"conv|recurrent|ssm")
"""What transformers' caches call what layers carry from token to token beside keys and values."""
LIBRARY = re.compile(r"No module named '([\w.]+)'|requires the (\S+) library|pip install ([\w-]+)")
CONFIG_READ = re.compile(r"\bconfig\.([a-z]\w*)")
SIGNS = re.compile(r"\x1b\[[0-9;]*m")
UNSUPPORTED = re.compile(r"operator '(?:\w+::)?(\w+)'")
MARKS = re.compile(r"`|<class '([\w.]+)'>")
INTERNAL = re.compile(r"https?:|Fake|Graph|Dynamo|torch\.|aten|[<>{}`]|0x[0-9a-f]|\bSym")
"""What makes a message one for developers of a library."""
LONGEST_QUOTE = 140
"""Characters of a message that are quoted."""

Step = tuple[FrameType, int]
"""A call in a traceback, and its line."""
NO_VALUES = "the values of a tensor decide what is computed, or how large a result is, which a graph cannot follow"
NOT_YET = "such models cannot be cast yet, choose another one"
CHECK_CONFIG = "correct config.json"


@dataclass(frozen=True)
class Place:
    """A line of an author's code, inside `function`."""

    function: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.function} ({Path(self.file).name}, line {self.line})"


@contextmanager
def explained(what: str, advice: str = NOT_YET, config: Any = None) -> Iterator[None]:
    """Turns whatever foreign code raises inside into the InputError "WHAT: trouble; advice.".

    Errors of truecast's own pass, as do those that no foreign code had a part in. `config` is what the code reads.
    """
    try:
        yield
    except TruecastError:
        raise
    except Exception as error:
        words = trouble(error, config)
        if words is None:
            raise
        raise InputError(f"{what}: {words}; {advice}.") from error


def trouble(error: BaseException, config: Any = None) -> str | None:
    """What went wrong; None where neither an author's nor a library's code had a part in it."""
    causes = list(_causes(error))
    steps = [step for cause in reversed(causes) for step in traceback.walk_tb(cause.__traceback__)]
    if all(HERE in Path(frame.f_code.co_filename).parents for frame, _ in steps):
        return None
    authors = [step for step in steps if is_authors(step[0].f_code.co_filename)]
    place = _place_of(*authors[-1]) if authors else None
    where = f"in {place} " if place else ""
    if (node := _node_without_operator(causes, steps)) is not None:
        return _operator(node)
    if (lacking := next((c for c in causes if isinstance(c, UnsupportedOperatorError)), None)) is not None:
        return _lacking(where, found[1] if (found := UNSUPPORTED.search(str(lacking))) else "operator")
    if any(type(cause).__name__ in VALUES_DECIDE or DATA_DEPENDENT.search(str(cause)) for cause in causes):
        return f"{where}{NO_VALUES}"
    if package := _missing_package(causes):
        return f"its code needs the Python package {package}, which is not installed"
    if state := _state(causes, steps):
        return f"{where}a layer keeps {state} beside keys and values"
    return _other(causes[-1], authors, place, config)


def is_authors(file: str) -> bool:
    """Whether code of that file was written for a model, not for truecast, Python, or a library that runs models."""
    path = Path(file)
    if file.startswith("<") or HERE in path.parents:
        return False
    if PACKAGES not in path.parts:
        return STANDARD not in path.parents
    inside = path.parts[len(path.parts) - path.parts[::-1].index(PACKAGES) :]
    return inside[0] not in MACHINERY or (inside[:2] == MODELS and inside[2] != AUTO)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception, and what it was raised from, the origin last."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _place_of(frame: FrameType, line: int) -> Place:
    code = frame.f_code
    owner = frame.f_locals.get("self")
    function = code.co_name if owner is None else f"{type(owner).__name__}.{code.co_name}"
    return Place(function, code.co_filename, line)


def _node_without_operator(causes: Sequence[BaseException], steps: Sequence[Step]) -> torch.fx.Node | None:
    """The node that torch's ONNX exporter was at when it found no operator for it."""
    if not any(type(cause).__name__ == "DispatchError" for cause in causes):
        return None
    nodes = (frame.f_locals.get("node") for frame, _ in reversed(steps))
    return next((node for node in nodes if isinstance(node, torch.fx.Node)), None)


def _operator(node: torch.fx.Node) -> str:
    """That ONNX lacks an operator, which one, and the line that the exporter remembers for it."""
    name = str(node.target).rpartition("::")[2].removeprefix("aten.").partition(".")[0].lstrip("_")
    lines = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', str(node.meta.get("stack_trace") or ""))
    found = next(((file, line, function) for file, line, function in reversed(lines) if is_authors(file)), None)
    stack = node.meta.get("nn_module_stack") or {}
    owners = [str(kind).rpartition(".")[2].rstrip("'>") for _, kind in stack.values()]
    where = ""
    if found is not None:
        file, line, function = found
        inside = f"{owners[-1]}.{function}" if owners and function == "forward" else function
        where = f"in {Place(inside, file, int(line))} "
    tensors = [value for one in node.all_input_nodes if isinstance(value := one.meta.get("val"), torch.Tensor)]
    return _lacking(where, "complex" if any(tensor.is_complex() for tensor in tensors) else name)


def _lacking(where: str, name: str) -> str:
    if COMPLEX.search(name):
        return f"{where}numbers are complex, and ONNX has no such type"
    return f"{where}ONNX has no operator that does torch's {name}"


def _missing_package(causes: Sequence[BaseException]) -> str | None:
    for cause in causes:
        found = LIBRARY.search(str(cause)) if isinstance(cause, ImportError) else None
        if found is not None:
            return next(group for group in found.groups() if group)
    return None


def _state(causes: Sequence[BaseException], steps: Sequence[Step]) -> str | None:
    """What a layer asked transformers' cache for beside keys and values; None where it asked for nothing."""
    origin = causes[-1]
    asked = [frame.f_code.co_name for frame, _ in steps if frame.f_code.co_filename.endswith(CACHES)]
    if asked:
        kind = "a convolution or recurrent state" if RECURRENT.search(f"{asked} {origin}") else None
        return kind or ("an index of its keys" if "index" in asked[-1] else None)
    held = isinstance(getattr(origin, "obj", None), Cache | CacheLayerMixin)
    return f"a state of its own ({origin.name})" if held and isinstance(origin, AttributeError) else None


def _other(origin: BaseException, authors: Sequence[Step], place: Place | None, config: Any) -> str:
    """Where the code stops and on which settings; an error's own words only where they are for its users."""
    settings = _settings(authors[-1], config) if authors and config is not None else ""
    return f"{place or 'its code'} {_verb(origin)}{settings}{_quote(origin)}"


def _verb(origin: BaseException) -> str:
    if isinstance(origin, AttributeError) and origin.name:
        return f"asks for {origin.name!r}, which is not there"
    if isinstance(origin, KeyError) and origin.args:
        return f"knows no {origin.args[0]!r}"
    if isinstance(origin, ZeroDivisionError):
        return "divides by zero"
    return "cannot go on"


def _settings(step: Step, config: Any) -> str:
    """The settings that the line reads, as " where a is 1 and b is 2"."""
    frame, number = step
    line = linecache.getline(frame.f_code.co_filename, number)
    names = dict.fromkeys(CONFIG_READ.findall(line))
    values = [f"{name} is {getattr(config, name)!r}" for name in names if hasattr(config, name)]
    return f" where {' and '.join(values)}" if values else ""


def _quote(origin: BaseException) -> str:
    """The first line of what the author says, or of what a library does where it names nothing of its own."""
    if isinstance(origin, AttributeError | KeyError | ZeroDivisionError):
        return ""
    lines = [SIGNS.sub("", line).strip() for line in str(origin).splitlines()]
    said = MARKS.sub(r"\1", next((line for line in lines if line), "")).rstrip(".:")
    *_, (frame, _) = traceback.walk_tb(origin.__traceback__)
    if not said or (INTERNAL.search(said) and not is_authors(frame.f_code.co_filename)):
        return ""
    return f" ({said})" if len(said) <= LONGEST_QUOTE else f" ({said[:LONGEST_QUOTE]}…)"
