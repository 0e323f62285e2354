"""PLAN.toml: what a study measures. Every key is checked, and a wrong one is named with the nearest right one."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    model_validator,
)

from truecast.errors import InputError
from truecast.request.options import TYPES, options, require_value

Baseline = Literal["bf16", "compile", "torchao-int8"]
BASELINES: tuple[Baseline, ...] = ("bf16", "compile", "torchao-int8")
UNITS: Mapping[str, int] = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def _bytes(value: object) -> object:
    """Bytes of a text such as "8 GB"; anything else is left to the check behind this one."""
    if not isinstance(value, str):
        return value
    number, unit = value.rstrip("KMGiB ").strip(), value.lstrip("0123456789. ").strip()
    try:
        return int(float(number) * UNITS[unit])
    except (KeyError, ValueError):
        raise ValueError(f'write a number and a unit, as "8 GB", not {value!r}') from None


def _listed(value: object) -> object:
    return value if isinstance(value, list | tuple) else [value]


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


Count = Annotated[int, Field(ge=1, strict=True)]
Choices = Annotated[tuple[str, ...], BeforeValidator(_listed), AfterValidator(_distinct)]
Numbers = Annotated[tuple[Count, ...], BeforeValidator(_listed), AfterValidator(_distinct)]
Positive = Annotated[float, Field(gt=0)]
Bytes = Annotated[int, BeforeValidator(_bytes), Field(gt=0)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Model(_Table):
    """What is studied: a Hugging Face folder, its task, or `module`, the function that builds the author's module.

    `module` is `package.module:function`, or `file.py:function` beside the plan; it is called with the folder.
    `trust_remote_code` lets code that comes with the folder run.
    """

    source: Path
    task: str | None = None
    module: str | None = None
    trust_remote_code: bool = False


class Data(_Table):
    """The file with the rows: `text` or `token_ids` names the column to read, `labels` maps outputs to columns.

    `text` may name two columns, for models that read pairs. `classes` gives the class names of an output in the
    model's order, where a column holds names and not numbers. `rows` takes the first so many; `batch` of them run at a
    time, cut to `max_length` tokens.
    """

    file: Path
    text: Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1, max_length=2)] | None = None
    token_ids: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    classes: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    rows: Count | None = None
    batch: Count = 16
    max_length: Count = 128

    @model_validator(mode="after")
    def _one_column(self) -> Data:
        if (self.text is None) == (self.token_ids is None):
            raise ValueError("give either text or token_ids, the column to read")
        unknown = [output for output in self.classes if output not in self.labels]
        if unknown:
            raise ValueError(f"classes.{unknown[0]} belongs to no output in labels; {nearest(unknown[0], self.labels)}")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read as input."""
        return self.text or (self.token_ids or "",)


class Measure(_Table):
    """How it is measured: the cells of the table, calls per cell, and the limits of a variant's processes.

    `seconds` and `memory` (anonymous bytes) end a process that takes more; `cell_seconds` ends the repeats of a cell.
    """

    batch: Numbers = (1, 32)
    length: Numbers = (32, 128)
    threads: Numbers | None = None
    warmup: Annotated[int, Field(ge=0)] = 3
    repeats: Count = 50
    cell_seconds: Positive = 10.0
    seconds: Positive = 900.0
    memory: Bytes = 16 * 10**9


class Accept(_Table):
    """What a variant may cost: the drop of accuracy and of macro F1, and the least cosine to float32 without labels."""

    drop: Annotated[float, Field(ge=0)] = 0.01
    cosine: Annotated[float, Field(ge=-1, le=1)] = 0.99


class Block(_Table):
    """One block of variants: every combination of the values listed; what is left out keeps the export's default.

    Its keys are the options of an export that a study can vary, and those that hold for the whole block. `file`
    measures ONNX files that exist already, whoever made them, in place of exporting.
    """

    file: Choices | None = None

    @model_validator(mode="after")
    def _possible(self) -> Block:
        extra = [name for name, value in self if value is not None and name not in ("file", "provider")]
        if self.file is not None and extra:
            raise ValueError(f"an existing file cannot be given {', '.join(sorted(extra))}; take it out of this block")
        for name, said in options():
            for value in (self.given(name) or ()) if said.values is not None and said.study == "each" else ():
                try:
                    require_value(name, value, "module" if name in OF_MODULES else None)
                except InputError as error:
                    raise ValueError(str(error)) from error
        return self

    def given(self, name: str) -> Any:
        """What the plan says of an option; None where it says nothing."""
        return getattr(self, name, None)


OF_MODULES = ("target",)
"""Options of which studies take the values for models without a cache, which are what they measure."""
SWEPT: Mapping[Any, Any] = {str: Choices | None, int: Numbers | None, int | None: Numbers | None}
"""Lists of the values of an option, by its type."""
WHOLE: Mapping[Any, Any] = {bool: bool | None, Path | None: Path | None, tuple[str, ...]: Choices | None}
"""One value for a whole block."""


def _keys_of_variants() -> dict[str, Any]:
    """The options that a block may give, each of which may be left out."""
    each = {name: (SWEPT[TYPES[name]], None) for name, said in options() if said.study == "each"}
    return {**each, **{name: (WHOLE[TYPES[name]], None) for name, said in options() if said.study == "whole"}}


Variants: type[Block] = create_model("Variants", __base__=Block, **_keys_of_variants())


class Plan(_Table):
    """A whole plan; paths are absolute once it is read."""

    name: str = ""
    model: Model
    data: Data
    measure: Measure = Measure()
    accept: Accept = Accept()
    baselines: tuple[Baseline, ...] = BASELINES
    variants: tuple[Variants, ...] = Field(min_length=1)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file and folder that it reads."""
        module = Path((self.model.module or "").rpartition(":")[0])
        files = [Path(file) for block in self.variants for file in block.file or ()]
        texts = [text for block in self.variants if (text := block.given("calibration")) is not None]
        return (self.model.source, self.data.file, *([module] if module.suffix == ".py" else []), *files, *texts)


def read_plan(path: Path) -> Plan:
    """Reads and checks a plan; relative paths in it start at its folder.

    Raises:
        InputError: the file is missing, is no TOML, or has a key, a value or a path that cannot be.
    """
    if not path.is_file():
        raise InputError(f"There is no plan at {path}; check the path.")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is no TOML ({error}); correct it there.") from error
    try:
        plan = Plan.model_validate(document)
    except ValidationError as error:
        raise InputError(f"{path}: {_sentence(error)}") from error
    return _placed(plan, path)


def nearest(wrong: str, known: Iterable[str]) -> str:
    """`did you mean …?`, or the list of what is known."""
    names = list(known)
    near = get_close_matches(wrong, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(names)}."


def _sentence(error: ValidationError) -> str:
    """The first thing wrong, a misspelt key before a key that is missing because of it."""
    found = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")[0]
    where = [part for part in found["loc"] if "[" not in str(part)]  # pydantic's own words for a validator
    if found["type"] == "extra_forbidden":
        *table, key = where
        place = f"[{_dotted(table)}]" if table else "the plan"
        return f"{place} has no key {str(key)!r}; {nearest(str(key), _keys(table))}"
    if found["type"] == "missing":
        return f"{_dotted(where)} is missing; add it."
    if found["type"] == "literal_error":
        return f"{_dotted(where)}: there is no {found['input']!r}; {nearest(str(found['input']), BASELINES)}"
    message = found["msg"].removeprefix("Value error, ")
    message = f"{_dotted(where) or 'the plan'}: {message[0].lower()}{message[1:]}"
    return message if message[-1] in "?." else f"{message}; correct it there."


def _dotted(where: Iterable[object]) -> str:
    """A place in the plan, blocks of variants counted from 1."""
    words: list[str] = []
    for part in where:
        if isinstance(part, int) and words:
            words[-1] += f" {part + 1}"
        else:
            words.append(str(part))
    return ".".join(words)


def _keys(table: list[Any]) -> list[str]:
    """The keys that a table of the plan may have."""
    models: Mapping[str, type[BaseModel]] = {
        "model": Model,
        "data": Data,
        "measure": Measure,
        "accept": Accept,
        "variants": Variants,
    }
    owner = models.get(str(table[0]), Plan) if table else Plan
    return list(owner.model_fields)


def _placed(plan: Plan, path: Path) -> Plan:
    """The plan with absolute paths, each of which exists, and a name."""
    folder = path.resolve().parent
    source = _existing(folder, plan.model.source, f"{path}: model.source")
    module = plan.model.module
    if module is not None:
        place, colon, function = module.rpartition(":")
        if not colon or not place or not function.isidentifier():
            raise InputError(
                f"{path}: model.module is {module!r}; write it as package.module:function or file.py:function."
            )
        if place.endswith(".py"):
            module = f"{_existing(folder, Path(place), f'{path}: model.module')}:{function}"
    blocks = []
    for block in plan.variants:
        changes: dict[str, Any] = {}
        if block.file is not None:
            changes["file"] = tuple(str(_existing(folder, Path(it), f"{path}: variants.file")) for it in block.file)
        if (text := block.given("calibration")) is not None:
            changes["calibration"] = _existing(folder, text, f"{path}: variants.calibration")
        blocks.append(block.model_copy(update=changes))
    return plan.model_copy(
        update={
            "name": plan.name or path.stem,
            "model": plan.model.model_copy(update={"source": source, "module": module}),
            "data": plan.data.model_copy(update={"file": _existing(folder, plan.data.file, f"{path}: data.file")}),
            "variants": tuple(blocks),
        }
    )


def _existing(folder: Path, given: Path, where: str) -> Path:
    place = Path(os.path.normpath(folder / given.expanduser()))
    if not place.exists():
        raise InputError(f"{where} names {given}, which is not at {place}; check the path.")
    return place
