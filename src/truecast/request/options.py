"""The options of an export: name, type, default, values, and what is said of each in help.

Nothing heavy is imported here: the command line reads it before it knows what is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from truecast.errors import InputError
from truecast.weights.names import AS_IS, CODES, INTEGERS, MODULE_PRECISIONS, PRECISIONS

Value = TypeVar("Value")
Kind = Literal["decoder", "module"]
"""A decoder with a cache, or a module without one; some options and values are for one of them alone."""
KINDS: Mapping[Kind, str] = {"decoder": "decoders", "module": "models without a cache"}
RECOMMENDED = "recommended"
HALF_PRECISIONS = ("fp16", "bf16")
ACTIVATIONS = ("int8", "float")
RANGES = ("minmax", "entropy", "percentile")
"""Ways to find the range of an input in what calibration saw of it."""
OPTIMIZATIONS = ("all", "extended", "basic", "none")
CACHES = ("float", "int8", "int4")
EXPORTERS: Mapping[str, range] = {"dynamo": range(18, 26), "torchscript": range(17, 21)}
"""torch's exporters, and the opsets that each writes without changing the number behind one's back (torch 2.13)."""
METADATA = "option"
"""Under which a field keeps its `Option`."""
HEADINGS = (OWN, QUANTIZING, WITHOUT_CACHE, FOLDER) = (
    "Models of your own",
    "Quantizing",
    "Models without a cache",
    "The folder and the proof",
)
"""Headings of the help, in order; what is under none stands first."""


def precisions(kind: Kind | None) -> tuple[str, ...]:
    """The names of precisions; what inspection recommends has been found out by the time that the kind is known."""
    names = PRECISIONS if kind == "decoder" else (*PRECISIONS, *MODULE_PRECISIONS)
    return names if kind is not None else (*names, RECOMMENDED)


def _targets(kind: Kind | None) -> tuple[str, ...]:
    from truecast.targets import MODULE_TARGETS, TARGETS

    return MODULE_TARGETS if kind == "module" else tuple(TARGETS)


def _methods(kind: Kind | None) -> tuple[str, ...]:
    from truecast.calibration.libraries import CALIBRATED
    from truecast.weights.quantizers import STREAMED

    return tuple(STREAMED) if kind == "module" else (*STREAMED, *CALIBRATED)


def _providers(kind: Kind | None) -> tuple[str, ...]:
    from truecast.runtime.providers import PROVIDERS

    return tuple(PROVIDERS)


def _tasks(kind: Kind | None) -> tuple[str, ...]:
    from truecast.checkpoint.tasks import TASKS

    return tuple(TASKS)


def _clean_ups(kind: Kind | None) -> tuple[str, ...]:
    from truecast.trace.cleaners import CLEAN_UPS

    return CLEAN_UPS


def _these(values: Sequence[str]) -> Callable[[Kind | None], tuple[str, ...]]:
    return lambda kind: tuple(values)


@dataclass(frozen=True)
class Option:
    """What is said of an option beside its name, type and default.

    `help` is its line of help; `values` gives the names that it may have, for one kind of model or, None, for any;
    `noun` is what one of them is called; `metavar` stands for the value in help, under the heading `group`. `only` is
    the kind of model that heeds it. `study` says how a block of a study's plan takes it: a list, `each` of which makes
    a variant, or one value for the `whole` block.
    """

    help: str
    values: Callable[[Kind | None], tuple[str, ...]] | None = None
    noun: str = ""
    metavar: str | None = None
    group: str | None = None
    only: Kind | None = None
    study: Literal["each", "whole"] | None = None


def option(
    default: Value,
    help: str,
    values: Callable[[Kind | None], tuple[str, ...]] | None = None,
    noun: str = "",
    *,
    metavar: str | None = None,
    group: str | None = None,
    only: Kind | None = None,
    study: Literal["each", "whole"] | None = None,
) -> Value:
    """A field of `Request`, with what `Option` says of it."""
    said = Option(help, values, noun, metavar, group, only, study)
    made: Value = field(default=default, metadata={METADATA: said})
    return made


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of an export; the order is that of the work.

    Fields:
    """

    task: str | None = option(
        None,
        "What the model is for, in the Hub's words, as text-classification; without it, what the checkpoint's files "
        "name.",
        _tasks,
        "task",
    )
    module: str | None = option(
        None,
        "A function that takes SOURCE and gives a torch.nn.Module, with example inputs where it takes no tokens.",
        metavar="PACKAGE.FILE:FUNCTION",
        group=OWN,
    )
    dynamic: Mapping[str, Mapping[int, str]] | None = option(
        None,
        "A free axis of a module's input, as x.1=length or x.1=length=1..512; may be repeated.",
        metavar="INPUT.AXIS=NAME",
        group=OWN,
        only="module",
    )
    trust_remote_code: bool = option(False, "Let code that comes with the checkpoint run.", group=FOLDER)
    adapter: Path | None = option(None, "A LoRA adapter of peft's, added to the weights.", metavar="DIR")
    exporter: str = option(
        "dynamo",
        "dynamo or torchscript, torch's two exporters; for models without a cache.",
        _these(tuple(EXPORTERS)),
        "exporter",
        group=WITHOUT_CACHE,
        only="module",
        study="each",
    )
    target: str = option(
        "onnxruntime", "The runtime's contract: onnxruntime, genai or portable.", _targets, "target", study="each"
    )
    precision: str = option(
        RECOMMENDED,
        "as-is, fp32, fp16, int8 or int4, for models without a cache bf16, int8-dynamic and int8-static, too; "
        "without it, what `inspect` recommends for the provider.",
        precisions,
        "precision",
        study="each",
    )
    method: str = option(
        "rtn",
        "How the codes of int4 and int8 are made: rtn, k-quant, hqq, gptq, awq or auto-round.",
        _methods,
        "method",
        group=QUANTIZING,
        study="each",
    )
    activations: str = option(
        "int8",
        "int8 or float, for the products of quantized weights.",
        _these(ACTIVATIONS),
        "kind of activations",
        group=QUANTIZING,
        study="each",
    )
    block_size: int = option(
        32, "Weights per scale of int8 and int4: 16, 32, 64, 128 or 256.", group=QUANTIZING, study="each"
    )
    opset: int | None = option(
        None,
        "Version of the ONNX operators. Language models: 21 to 25, target portable only. Models without a cache: "
        "18 to 25, 17 to 20 with --exporter torchscript.",
        study="each",
    )
    optimization: str = option(
        "all",
        "What ONNX Runtime may do to a graph without a cache when it loads it: all, extended, basic or none.",
        _these(OPTIMIZATIONS),
        "level of optimization",
        group=WITHOUT_CACHE,
        only="module",
        study="each",
    )
    save_optimized: bool = option(
        False,
        "Keep the graph as ONNX Runtime rewrote it, too; bound to this machine.",
        group=WITHOUT_CACHE,
        only="module",
    )
    clean_up: str = option(
        "none",
        "The library that rewrites a graph without a cache once more: onnxscript, onnxslim, onnxsim, or none.",
        _clean_ups,
        "clean-up",
        group=WITHOUT_CACHE,
        only="module",
        study="each",
    )
    provider: str = option(
        "cpu",
        "Where it will run: cpu, cuda, tensorrt, directml, openvino, coreml or qnn, if installed.",
        _providers,
        "provider",
        study="each",
    )
    keep: tuple[str, ...] = option(
        (),
        "Gives matching weights as-is, fp32, int8 or int4 instead, as lm_head=int8; may be repeated, the last match "
        "counts.",
        metavar="PATTERN=PRECISION",
        group=QUANTIZING,
        study="whole",
    )
    calibration: Path | None = option(
        None,
        "Text for gptq, awq, auto-round and --kv-cache, and to measure prices on: paragraphs (.txt), or lines of "
        '{"text": …} (.jsonl); for int8-static, arrays by the names of the inputs (.npz), too.',
        metavar="FILE",
        group=QUANTIZING,
        study="whole",
    )
    calibration_method: str = option(
        "minmax",
        "How int8-static finds ranges: minmax, entropy or percentile.",
        _these(RANGES),
        "calibration method",
        group=QUANTIZING,
        only="module",
        study="each",
    )
    kv_cache: str = option(
        "float",
        "What keys and values are kept as: float, int8 or int4.",
        _these(CACHES),
        "kind of cache",
        group=QUANTIZING,
        only="decoder",
    )
    link_weights: bool = option(False, "Refer to the checkpoint's own bytes where possible (fp32).", group=FOLDER)
    verify: bool = option(True, "Skip the proof; the certificate then says `unproven`.", group=FOLDER, study="whole")
    force: bool = option(False, "Replace the artifact at OUT.", group=FOLDER)

    def __post_init__(self) -> None:
        """Paths may be given as text, and rules as any sequence."""
        for name, kind in TYPES.items():
            value = getattr(self, name)
            if isinstance(value, str) and Path in getattr(kind, "__args__", ()):
                object.__setattr__(self, name, Path(value))
        object.__setattr__(self, "keep", tuple(self.keep))

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file and folder that it names."""
        return tuple(value for value in vars(self).values() if isinstance(value, Path))

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precision asked for, and those of the rules."""
        return (self.precision, *(rule.rpartition("=")[2] for rule in self.keep))

    @property
    def cache_bits(self) -> int | None:
        """Bits of a code of the cache; None for floats."""
        return None if self.kv_cache == "float" else int(self.kv_cache.removeprefix("int"))

    @property
    def makes_codes(self) -> bool:
        """Whether any weight is quantized here in blocks."""
        return any(name in CODES for name in self.precisions)

    @property
    def makes_integers(self) -> bool:
        """Whether any product is one of integers."""
        return any(name in INTEGERS for name in self.precisions)

    @property
    def least_bits(self) -> int:
        """Bits that a weight takes at least, of those that become floats or codes; 0 where the checkpoint decides."""
        if self.link_weights or AS_IS in self.precisions:
            return 0
        bits = {"fp32": 32, "int4": 4} | dict.fromkeys(HALF_PRECISIONS, 16)
        return min(bits.get(name, 8) for name in self.precisions)


TYPES: Mapping[str, Any] = get_type_hints(Request)
"""The type of every option, by its name."""


def option_of(one: Field[Any]) -> Option:
    """What is said of a field of `Request`."""
    said: Option = one.metadata[METADATA]
    return said


def options() -> Iterator[tuple[str, Option]]:
    """Every option by its name, in order."""
    return ((one.name, option_of(one)) for one in fields(Request))


def flag(name: str) -> str:
    """How the command line calls an option; one that is on by itself is switched off there."""
    default = Request.__dataclass_fields__[name].default
    return f"--{'no-' if default is True else ''}{name.replace('_', '-')}"


def require_value(name: str, value: str, kind: Kind | None = None) -> str:
    """Returns `value`; raises InputError with the nearest name where the option `name` cannot be that."""
    said = option_of(Request.__dataclass_fields__[name])
    assert said.values is not None
    known = said.values(kind)
    if value in known:
        return value
    if kind is not None and value in said.values(None):
        other = next(words for one, words in KINDS.items() if one != kind)
        raise InputError(f"{flag(name)} {value} is for {other}; choose one of {', '.join(known)}.")
    near = get_close_matches(value, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(known)}."
    raise InputError(f"There is no {said.noun} {value!r}; {hint}")


def _described() -> str:
    """The text of `Request`, a line for each option: its help, which for a switch that is on says what off means."""
    lines = (
        f"        {name}: {'False: ' if flag(name).startswith('--no-') else ''}{said.help}" for name, said in options()
    )
    return "\n".join(((Request.__doc__ or "").rstrip(), *lines))


Request.__doc__ = _described()
