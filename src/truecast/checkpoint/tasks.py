"""What a checkpoint is made to do, from the name of its class: transformers ends class names with the task.

The names of the tasks are the Hub's. `feature-extraction` is a model without a head; `sentence-similarity` is one in a
sentence-transformers folder, whose pooling makes one vector of a text.
"""

from __future__ import annotations

from collections.abc import Mapping

from truecast.checkpoint.model import Checkpoint
from truecast.errors import InputError

GENERATION = "text-generation"
FEATURES, SENTENCES = "feature-extraction", "sentence-similarity"
ENDINGS: Mapping[str, str] = {
    "ForCausalLM": GENERATION,
    "LMHeadModel": GENERATION,
    "ForConditionalGeneration": GENERATION,
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForImageClassification": "image-classification",
    "ForAudioClassification": "audio-classification",
    "ForCTC": "automatic-speech-recognition",
}
"""Endings of class names, and the task each stands for."""
AUDIO_FEATURES = ("feat_extract_norm", "num_mel_bins")
"""Settings that only models of sound have: their ForSequenceClassification hears."""
MODULES_FILE = "modules.json"
"""What makes a folder one of sentence-transformers."""
TASKS = (*dict.fromkeys(ENDINGS.values()), FEATURES, SENTENCES)


def task_of(checkpoint: Checkpoint) -> str:
    """The task of a checkpoint, from its files and from the class that config.json names; generation if none says."""
    if MODULES_FILE in checkpoint.side_files:
        return SENTENCES
    names = checkpoint.config.get("architectures")
    if not isinstance(names, list) or not names:
        return GENERATION
    name = str(names[0])
    ending = next((ending for ending in ENDINGS if name.endswith(ending)), None)
    if ending is None:
        return FEATURES
    hears = ENDINGS[ending] == "text-classification" and any(key in checkpoint.config for key in AUDIO_FEATURES)
    return "audio-classification" if hears else ENDINGS[ending]


def require_task(task: str) -> str:
    """Returns `task`; raises InputError when there is none of that name."""
    if task not in TASKS:
        raise InputError(f"There is no task {task!r}; choose one of {', '.join(TASKS)}.")
    return task
