"""Token ids of a config.json that the model's own vocabulary does not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def without_stray_padding(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The configuration without a padding token that the embedding has no row for, and a notice.

    Adding a padding token to the tokenizer without resizing the model leaves such an id. It changes nothing that the
    model computes, but torch refuses to make an embedding with it.
    """
    padding, rows = config.get("pad_token_id"), config.get("vocab_size")
    if not (isinstance(padding, int) and isinstance(rows, int)) or -rows <= padding < rows:
        return config, ()
    return {**config, "pad_token_id": None}, (
        f"config.json has {padding} as pad_token_id, outside the vocabulary of {rows} (vocab_size); it is left out.",
    )
