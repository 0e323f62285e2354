"""The nouns of inspecting: what is stored alike, what it can become, and the whole answer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

BYTE_BITS = 8
WHOLE_ROW = -1
"""Group size where all weights of a row share a scale."""


@dataclass(frozen=True)
class StorageGroup:
    """Tensors that are stored alike: `pattern` is their name with `*` for the number of the layer.

    stored_as: the format's own words. tensors, weights: how many. nbytes: in the checkpoint, all parts together.
    group_size: weights of a row that share a scale, `WHOLE_ROW` for all of them; None for floats. is_float: whether
    the checkpoint holds them as floats. becomes, as_is_bytes: what the precision as-is makes of them, and its size on
    disk; empty and None where nothing can be made of the checkpoint.
    """

    pattern: str
    stored_as: str
    tensors: int
    weights: int
    nbytes: int
    group_size: int | None
    is_float: bool
    becomes: str
    as_is_bytes: int | None

    @property
    def bits_per_weight(self) -> float:
        """Bits in the checkpoint for one weight, scales and zero points included."""
        return self.nbytes * BYTE_BITS / max(self.weights, 1)


@dataclass(frozen=True)
class Choice:
    """One thing the checkpoint can become, with its estimated cost in bytes.

    `disk`: the weights. `export_peak`: memory of an export without its proof, but for the files it maps, which the
    system takes back. `proof_peak`: resident memory of an export with it. `run_peak`: memory of generating with a cache
    of `costs.PLANNED_TOKENS` tokens, or of the context where it is shorter.
    """

    target: str
    precision: str
    disk: int
    export_peak: int
    proof_peak: int
    run_peak: int


@dataclass(frozen=True)
class Recommendation:
    """The precision to choose on a provider, and why."""

    provider: str
    precision: str
    reason: str


@dataclass(frozen=True)
class Inspection:
    """What `truecast inspect` answers. Sizes in bytes; None where the configuration does not tell.

    `task` is what the model is for, in the Hub's words. `parameters` counts a tied tensor once. `quantization` names
    the library that quantized the weights, None for floats; `left_in_float` are then the modules whose matrices it did
    not quantize. `ignored` counts tensors that no weight needs, by the reason. `kv_bytes_per_token` is for a float32
    cache. `obstacle` says why `choices` is empty and there is no `recommendation`. `notices` are sentences that the
    user should read.
    """

    path: str
    format: str
    architecture: str
    model_type: str
    task: str
    parameters: int
    stored_bytes: int
    storage: tuple[StorageGroup, ...]
    quantization: str | None
    left_in_float: tuple[str, ...]
    ignored: dict[str, int]
    context_length: int | None
    vocabulary: int | None
    layers: int | None
    heads: int | None
    kv_heads: int | None
    head_dim: int | None
    kv_bytes_per_token: int | None
    choices: tuple[Choice, ...]
    recommendation: Recommendation | None
    obstacle: str | None
    notices: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        plain = asdict(self)
        for group, entry in zip(self.storage, plain["storage"], strict=True):
            entry["bits_per_weight"] = round(group.bits_per_weight, 3)
        return plain
