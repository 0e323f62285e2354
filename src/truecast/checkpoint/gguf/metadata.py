"""What a GGUF file says about its model: metadata of the architecture, checked as it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from truecast.checkpoint.gguf.container import Container
from truecast.checkpoint.gguf.special_tokens import special_id
from truecast.checkpoint.model import Array
from truecast.errors import InputError


@dataclass(frozen=True)
class Facts:
    """What a file says about its model. `read_tensor` decodes a (small) tensor by its GGUF name."""

    container: Container
    architecture: str
    read_tensor: Callable[[str], Array]

    def get(self, key: str) -> Any:
        """The metadata value `{architecture}.{key}`; None when there is none."""
        return self.container.metadata.get(f"{self.architecture}.{key}")

    def number(self, key: str, default: float | None = None) -> float:
        """The same, which must be one number; `default` stands for a value that is not there."""
        value = default if self.get(key) is None else self.get(key)
        if isinstance(value, (int, float)):
            return value
        what = "no" if value is None else "not one number as"
        raise InputError(
            f"{self.container.path} has {what} {self.architecture}.{key} in its metadata; "
            "convert the model again with a current llama.cpp."
        )

    def size(self, key: str, default: int | None = None) -> int:
        """The same, which must be a positive whole number."""
        value = self.number(key, default)
        if isinstance(value, int) and value > 0:
            return value
        raise InputError(
            f"{self.container.path} has {value} as {self.architecture}.{key} in its metadata; convert the model again."
        )

    def token(self, name: str) -> int | None:
        """The id of a special token: `bos`, `eos`, `padding`, …; None when the file has none, or no row for it."""
        return special_id(self.container.metadata, name, self.rows)

    @property
    def rows(self) -> int:
        """Rows of the token embedding."""
        return self.container.tensors["token_embd.weight"].shape[0]

    def has(self, tensor: str) -> bool:
        """Whether the file holds the tensor."""
        return tensor in self.container.tensors

    @property
    def layers(self) -> int:
        """Number of blocks, each of which must be there."""
        stated = self.size("block_count")
        blocks = {name.split(".")[1] for name in self.container.tensors if name.startswith("blk.")}
        if len(blocks) != stated:
            raise InputError(
                f"{self.container.path} states {stated} blocks and holds {len(blocks)}; download it again."
            )
        return stated

    @property
    def experts(self) -> int:
        """Experts of a layer; 0 where the model is no mixture of them."""
        return self.size("expert_count") if self.number("expert_count", 0) else 0

    @property
    def heads(self) -> int:
        """Query heads of a layer."""
        return self.size("attention.head_count")

    @property
    def kv_heads(self) -> int:
        """Key and value heads of a layer."""
        return self.size("attention.head_count_kv", self.heads)

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.size("attention.key_length", self.size("embedding_length") // self.heads)

    @property
    def rotary_fraction(self) -> float:
        """Share of a head that is rotated."""
        return self.size("rope.dimension_count", self.head_dim) / self.head_dim
