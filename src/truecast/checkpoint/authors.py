"""What transformers' own source says of a type of model, read as text: an import takes seconds and needs torch."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CAUSAL = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
PICTURES = "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"
ENCODER_DECODERS = ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES")
TABLES = "models/auto/modeling_auto.py"
TYPES = ("models/auto/auto_mappings.py", "models/auto/configuration_auto.py")


class Library:
    """The text of the installed transformers."""

    def knows(self, kind: str) -> bool:
        """Whether it has a configuration for a model type."""
        return any(self.has_word(file, kind) for file in TYPES)

    def has_word(self, file: str, word: str) -> bool:
        """Whether a file of it has a text of exactly these letters."""
        return f'"{word}"' in _text(file)

    def table(self, name: str) -> Mapping[str, Any]:
        """A table of the auto classes: model type → name of the class."""
        return _tables().get(name, {})

    def source_of(self, kind: str, name: str) -> str:
        """The text of the file where the class `name` of a model type is written; empty where it is not found."""
        for folder in dict.fromkeys((kind.replace("-", "_"), kind.split("_")[0], _folder_of(kind))):
            for file in sorted((_root() / "models" / folder).glob("modeling_*.py")):
                text = file.read_text("utf-8")
                if re.search(rf"^class {re.escape(name)}\(", text, re.MULTILINE):
                    return text
        return ""


def _folder_of(kind: str) -> str:
    """The folder that transformers' table of exceptions gives for a model type."""
    found = re.search(rf'\("{re.escape(kind)}", "([a-z]\w*)"\)', _text(TYPES[0]))
    return found[1] if found else kind


@lru_cache(1)
def _root() -> Path:
    spec = find_spec("transformers")
    return Path(spec.origin).parent if spec is not None and spec.origin else Path()


@lru_cache(8)
def _text(file: str) -> str:
    path = _root() / file
    return path.read_text("utf-8") if path.is_file() else ""


@lru_cache(1)
def _tables() -> Mapping[str, Mapping[str, Any]]:
    """Every table that is written as OrderedDict([(type, class), …])."""
    found = {}
    for node in ast.parse(_text(TABLES)).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and node.value.args:
            pairs = getattr(node.value.args[0], "elts", [])
            target = node.targets[0]
            if isinstance(target, ast.Name):
                found[target.id] = dict(ast.literal_eval(pair) for pair in pairs if isinstance(pair, ast.Tuple))
    return found
