"""The answer as a whole: facts, storage, costs, and what to choose."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from truecast.checkpoint import Checkpoint, open_checkpoint
from truecast.checkpoint.castable import obstacle
from truecast.checkpoint.tasks import task_of
from truecast.inspection import facts
from truecast.inspection.costs import choices, parameter_count
from truecast.inspection.model import Inspection, Recommendation
from truecast.inspection.storage import has_experts, left_in_float, outlooks, parameters, storage_groups
from truecast.weights.names import AS_IS


def inspect(path: Path | str) -> Inspection:
    """Inspect the checkpoint at `path`.

    Raises:
        InputError: it cannot be opened.
    """
    return inspect_checkpoint(open_checkpoint(path))


def inspect_checkpoint(checkpoint: Checkpoint) -> Inspection:
    """Inspect an open checkpoint."""
    hindrance = obstacle(checkpoint, task_of(checkpoint))
    tensors = parameters(checkpoint)
    becoming = {} if hindrance else outlooks(tensors)
    return Inspection(
        path=str(checkpoint.path),
        format=checkpoint.format,
        architecture=facts.architecture(checkpoint),
        model_type=str(checkpoint.config.get("model_type", "unknown")),
        task=task_of(checkpoint),
        parameters=parameter_count(checkpoint),
        stored_bytes=sum(tensor.nbytes for tensor in checkpoint.tensors.values()),
        storage=storage_groups(checkpoint.tensors.values(), becoming),
        quantization=checkpoint.quantization,
        left_in_float=left_in_float(tensors) if checkpoint.quantization else (),
        ignored=dict(Counter(checkpoint.ignored.values())),
        context_length=facts.context_length(checkpoint),
        vocabulary=facts.vocabulary(checkpoint),
        layers=facts.layers(checkpoint),
        heads=facts.heads(checkpoint),
        kv_heads=facts.kv_heads(checkpoint),
        head_dim=facts.head_dim(checkpoint),
        kv_bytes_per_token=facts.kv_bytes_per_token(checkpoint),
        choices=() if hindrance else choices(checkpoint, becoming),
        recommendation=None if hindrance else recommend(checkpoint, "cpu"),
        obstacle=hindrance,
        notices=checkpoint.notices,
    )


def recommend(checkpoint: Checkpoint, provider: str) -> Recommendation:
    """The precision to choose for `provider` (`cpu`, `cuda`, …), and why."""
    if checkpoint.quantization is not None and (facts.is_decoder(checkpoint) or facts.is_module(checkpoint)):
        reason = "it is quantized already, and keeping its own codes and scales loses nothing"
        return Recommendation(provider, AS_IS, reason)
    if not facts.is_decoder(checkpoint):
        return Recommendation(provider, "fp32", "what another one loses depends on the task: measure it")
    if provider == "cpu" or has_experts(checkpoint.tensors.values()):
        reason = "each new token reads every weight once, and int4 has about a seventh of the bytes of float32"
        return Recommendation(provider, "int4", reason)
    reason = "a GPU multiplies float16 fastest, and it has half the bytes of float32"
    return Recommendation(provider, "fp16", reason)


def recommended_precision(checkpoint: Checkpoint, provider: str) -> str:
    """The precision of `recommend`."""
    return recommend(checkpoint, provider).precision
