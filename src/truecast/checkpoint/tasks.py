"""What a checkpoint is made to do, from the name of its class: transformers ends class names with the task.

The names of the tasks are the Hub's. `feature-extraction` is a model without a head; `sentence-similarity` is one in a
sentence-transformers folder, whose pooling makes one vector of a text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

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
TRANSFORMER_TASKS: Mapping[str, str] = {"sequence-classification": "text-classification"}
"""What the encoder of such a folder may do beside giving hidden states: cross-encoders are saved so."""
ALSO: Mapping[str, tuple[str, ...]] = {"fill-mask": ("ForPreTraining", "WithLMHeadModel")}
"""Further classes whose weights may hold the head of a task."""
TRANSFORMER_FILE = re.compile(r"sentence_[\w-]+_config\.json")
HEAD = re.compile(r"(For[A-Z]|WithLMHead|LMHead)\w*$")
"""What a class name has behind the model type where the class has a head."""
TASKS = (*dict.fromkeys(ENDINGS.values()), FEATURES, SENTENCES)


def task_of(checkpoint: Checkpoint) -> str:
    """The task of a checkpoint, from its files and from the class that config.json names; generation if none says."""
    if MODULES_FILE in checkpoint.side_files:
        return TRANSFORMER_TASKS.get(str(transformer_settings(checkpoint).get("transformer_task")), SENTENCES)
    names = _classes(checkpoint)
    return _task_of_class(names[0], checkpoint.config) if names else GENERATION


def _task_of_class(name: str, config: Mapping[str, Any]) -> str:
    ending = next((ending for ending in ENDINGS if name.endswith(ending)), None)
    if ending is None:
        return FEATURES
    hears = ENDINGS[ending] == "text-classification" and any(key in config for key in AUDIO_FEATURES)
    return "audio-classification" if hears else ENDINGS[ending]


def class_doing(checkpoint: Checkpoint, task: str) -> str | None:
    """The class that config.json names, where it does the task: a sentence's vector is made behind one without head."""
    name = next(iter(_classes(checkpoint)), None)
    if name is None:
        return None
    done = HEAD.search(name) is None if task == SENTENCES else _task_of_class(name, checkpoint.config) == task
    return name if done else None


def chosen_task(checkpoint: Checkpoint, asked: str | None) -> str:
    """The task that is asked for, or else the checkpoint's own.

    A model without its head can be had of every class, another head of none: tensors of two heads may have the same
    names and shapes, and still the one was never trained for what the other does.

    Raises InputError when there is no task of that name, or config.json names a class with the head of another one.
    """
    if asked is None:
        return task_of(checkpoint)
    if asked not in TASKS:
        raise InputError(f"There is no task {asked!r}; choose one of {', '.join(TASKS)}.")
    other = [name for name in _classes(checkpoint) if not _may_do(name, asked)]
    if other and asked != task_of(checkpoint):
        raise InputError(
            f"A {other[0]}, as {checkpoint.path} says it is, has no head for {asked}; "
            f"leave --task out, or take the model without its head with --task {FEATURES}."
        )
    return asked


def transformer_settings(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """What a sentence-transformers folder says of its encoder, in sentence_bert_config.json or the like."""
    names = sorted(name for name in checkpoint.side_files if TRANSFORMER_FILE.fullmatch(name))
    found: Mapping[str, Any] = json.loads(checkpoint.side_files[names[0]]()) if names else {}
    return found


def _classes(checkpoint: Checkpoint) -> list[str]:
    names = checkpoint.config.get("architectures")
    return [str(name) for name in names] if isinstance(names, list) else []


def _may_do(name: str, task: str) -> bool:
    """Whether a class of that name may have the head of a task; one that names no head may have any."""
    head = HEAD.search(name)
    if head is None or task in (FEATURES, SENTENCES):
        return True
    fitting = (*(ending for ending, its in ENDINGS.items() if its == task), *ALSO.get(task, ()))
    return head[0].startswith(fitting)
