"""The example's model: MiniLM with two classifiers on the mean of its token vectors."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

CATEGORIES = ("art", "computers", "education", "food", "law", "politics", "science", "sports", "work")


class TwoHeads(nn.Module):
    """Says of a text which file of the fortunes it is from, and whether it names who said it."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.config = encoder, encoder.config
        size = encoder.config.hidden_size
        self.category = nn.Linear(size, len(CATEGORIES))
        self.attributed = nn.Linear(size, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Tokens and mask [batch, tokens] → scores [batch, 9] and [batch, 2]."""
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
        mean = (tokens * mask).sum(1) / mask.sum(1)
        return {"category": self.category(mean), "attributed": self.attributed(mean)}


def build(folder: Path | str) -> TwoHeads:
    """The trained model in a folder that train.py wrote; what `--module model:build` names."""
    config = AutoConfig.from_pretrained(folder)
    model = TwoHeads(AutoModel.from_config(config, add_pooling_layer=False))
    model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return model.eval()


def untrained(folder: Path | str) -> TwoHeads:
    """MiniLM with its own weights and new heads."""
    torch.manual_seed(0)
    return TwoHeads(AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False))
