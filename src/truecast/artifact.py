"""The published folder: its manifest and its certificate (`publishing` is how it gets to its place).

`truecast.json` holds no time, host name or random number: the same inputs give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from truecast.errors import InputError

MANIFEST_NAME = "truecast.json"
GRAPH_NAME = "model.onnx"
SAVED_NAME = "model.optimized.onnx"
"""The graph as ONNX Runtime rewrote it for the machine that made it; only there it may be relied on."""
SCHEMA_VERSION = 1
HASH_CHUNK_BYTES = 1 << 22


class Status(StrEnum):
    """What the certificate claims."""

    PROVEN = "proven"
    UNPROVEN = "unproven"
    """No proof was run (`--no-verify`)."""
    FAILED = "failed"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Record):
    """The checkpoint an artifact was made from; `sha256` maps each of its tensor files' names to a digest.

    `adapter` is the folder of the adapter that was added to its weights, if one was.
    """

    path: str
    format: str
    adapter: str | None = None
    sha256: dict[str, str] = Field(default_factory=dict)
    side_sha256: dict[str, str] = Field(default_factory=dict)
    """The same of the files that went along: tokenizer, configuration, chat template."""


class TensorInfo(_Record):
    """One input or output of the graph; a dimension is a fixed size or a symbolic name."""

    name: str
    dtype: str
    shape: list[int | str]


class CacheInfo(_Record):
    """What the layers of a decoder graph carry from step to step: keys and values, and other states.

    `in_place`: keys and values of one layer, past and present, may be bound to one buffer. `layers` counts the layers
    that carry anything. `dtype` is that of their elements (a recurrent state may have a wider one). Quantized keys and
    values have `bits` to a code, two codes of 4 bits to an element, and stand for values of the dtype `stands_for`, in
    which attention computes; both are None for floats.
    """

    layers: int
    in_place: bool
    dtype: str
    bits: int | None = None
    stands_for: str | None = None

    @property
    def values_per_element(self) -> int:
        """How many keys or values one element holds."""
        return 2 if self.bits == 4 else 1


class GraphInfo(_Record):
    """What a runtime must know about the graph, and how it came to be.

    `padding`: `any` (every 0/1 attention mask gives right results) or `right` (real tokens first in every row).
    `opsets` maps an operator domain to its version. `session_entries` are the session keys that ONNX Runtime needs to
    run the graph as it was proven. `optimization` is what ONNX Runtime may do to it (`all`, `extended`, `basic`,
    `none`). `axes` are the free axes of a module's inputs with their sizes (`1..512`), and `limits` the bounds of its
    integer inputs (values from 0 to below the bound). `lowered` counts operators that replaced a leaf of the model, by
    leaf; `traced` names leaves left in standard operators, with the reason. `islands` are the nodes of a graph of 16
    bits that compute in float32, with the reason. `providers` are those that have kernels for the graph; none named
    means any. `ids_before_text` and `ids_behind_text` are what tokenizer.json puts around a text: this is meant where
    other tokenizers of the same files add something else. `restarts_behind` is the length behind which a rotary
    embedding takes other factors for the whole text (longrope): one that grows past it is computed again.
    """

    file: str = GRAPH_NAME
    padding: str = "any"
    opsets: dict[str, int]
    session_entries: dict[str, str] = Field(default_factory=dict)
    ir_version: int
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    cache: CacheInfo | None = None
    context_length: int | None = None
    restarts_behind: int | None = None
    vocab_size: int | None = None
    eos_token_ids: list[int] = Field(default_factory=list)
    ids_before_text: list[int] = Field(default_factory=list)
    ids_behind_text: list[int] = Field(default_factory=list)
    optimization: str = "all"
    axes: dict[str, str] = Field(default_factory=dict)
    limits: dict[str, int] = Field(default_factory=dict)
    lowered: dict[str, int] = Field(default_factory=dict)
    traced: dict[str, str] = Field(default_factory=dict)
    islands: dict[str, str] = Field(default_factory=dict)
    providers: list[str] = Field(default_factory=list)


class WeightInfo(_Record):
    """One weight of the graph: the initializers that hold it and the checkpoint tensors it came from.

    `packing` names the form (`dense float32`, `int4 block 32 symmetric`, …); `sha256` is over the bytes of the
    initializers in the order listed. `own` says that codes and scales are the checkpoint's own.
    """

    initializers: list[str]
    sources: list[str]
    packing: str
    sha256: str
    own: bool = False


class Check(_Record):
    """One measured comparison of the proof. `measured` and `limit` are in `unit`; `detail` says where the worst was."""

    tier: str
    name: str
    passed: bool
    measured: float | None = None
    limit: float | None = None
    unit: str = ""
    detail: str = ""


class Certificate(_Record):
    """What was proven, where: versions of the libraries and the processor's features beside every number."""

    status: Status
    environment: dict[str, str] = Field(default_factory=dict)
    checks: list[Check] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    signal_to_noise: dict[str, float | None] = Field(default_factory=dict)
    """dB of every weight that was quantized here, by the name of its parameter; None where it is exact."""
    manifest_sha256: str = ""
    """Over all of truecast.json but this field."""


class Manifest(_Record):
    """The content of truecast.json."""

    schema_version: int = SCHEMA_VERSION
    truecast: str
    source: Source
    task: str = "text-generation"
    """What the model is for, in the Hub's words; `module` where it is none of these."""
    target: str
    dialect: str
    provider: str
    precision: str
    settings: dict[str, Any] = Field(default_factory=dict)
    graph: GraphInfo
    weights: list[WeightInfo]
    ignored_tensors: dict[str, str] = Field(default_factory=dict)
    """Checkpoint tensors that the graph does not need, each with the reason."""
    notices: list[str] = Field(default_factory=list)
    """What the user should know of the checkpoint, and of what became of it."""
    files: dict[str, str]
    """sha256 of every other file of the folder."""
    certificate: Certificate


class _Versioned(BaseModel):
    """What every schema has."""

    schema_version: int


def sha256_of(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes truecast.json into `folder`, with the digest of all of it in the certificate."""
    digest = document_digest(manifest.model_dump(mode="json"))
    certificate = manifest.certificate.model_copy(update={"manifest_sha256": digest})
    stamped = manifest.model_copy(update={"certificate": certificate})
    (folder / MANIFEST_NAME).write_text(stamped.model_dump_json(indent=1) + "\n", encoding="utf-8")


def document_digest(document: Mapping[str, Any]) -> str:
    """The hexadecimal SHA-256 of the content of a truecast.json, but for the field that holds it."""
    certificate = {key: value for key, value in document["certificate"].items() if key != "manifest_sha256"}
    whole = {**document, "certificate": certificate}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Reads truecast.json; raises InputError when it is missing, of a newer schema, or damaged."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise InputError(
            f"{folder} is not a truecast artifact: it has no {MANIFEST_NAME}; make one with `truecast export`."
        )
    content = path.read_bytes()
    try:
        version = _Versioned.model_validate_json(content).schema_version
        if version > SCHEMA_VERSION:  # before the rest, which may hold fields that we do not know
            raise InputError(
                f"{path} has schema version {version}, newer than the {SCHEMA_VERSION} that this truecast knows; "
                "update truecast."
            )
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path} cannot be read ({where}: {first['msg']}); export the model again.") from error
