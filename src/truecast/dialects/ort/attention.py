"""Attention over a key/value cache as com.microsoft.GroupQueryAttention."""

from __future__ import annotations

import torch

from truecast.dialects.model import AttentionCall, Tensor

HEAD_DIM_MULTIPLE = 8
"""GroupQueryAttention's rule for head_dim without its own rotary (ONNX Runtime 1.31, operator schema)."""


def flatten_heads(states: Tensor) -> Tensor:
    """[batch, heads, sequence, head_dim] → [batch, sequence, heads · head_dim]."""
    return states.transpose(1, 2).flatten(2)


class GroupQueryAttention:
    """One operator per layer, with past and present; they may be one buffer."""

    def supports(self, call: AttentionCall) -> str | None:
        """See `AttentionLowering`."""
        head_dim = call.query.shape[3]
        if call.value.shape[3] != head_dim:
            return f"values of width {call.value.shape[3]} beside queries of width {head_dim}"
        if head_dim % HEAD_DIM_MULTIPLE:
            return f"head dimension {head_dim} is not a multiple of {HEAD_DIM_MULTIPLE}"
        if call.query.shape[1] % call.key.shape[1]:
            return f"{call.query.shape[1]} query heads cannot share {call.key.shape[1]} key heads evenly"
        return None

    def reference(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        scale: float,
        softcap: float,
        sinks: Tensor | None,
    ) -> Tensor:
        """See `AttentionLowering`."""
        group = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        scores = query @ key.transpose(2, 3) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores + mask
        if sinks is None:
            return torch.softmax(scores, -1) @ value
        sink = sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        return torch.softmax(torch.cat([scores, sink], -1), -1)[..., :-1] @ value

    def emit(self, call: AttentionCall) -> tuple[Tensor, Tensor, Tensor]:
        """See `AttentionLowering`."""
        batch, heads, sequence, head_dim = call.query.shape
        present = [batch, call.key.shape[1], call.total, head_dim]
        inputs: list[Tensor | None] = [
            *(flatten_heads(states) for states in (call.query, call.key, call.value)),
            call.past_key,
            call.past_value,
            call.last_position,
            call.total_length,
            *(None, None, None),  # cos_cache, sin_cache, position_ids: rotation happens outside
            call.bias,
            call.sinks,
        ]
        while inputs[-1] is None:
            inputs.pop()
        output, present_key, present_value = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            inputs,
            {
                "num_heads": heads,
                "kv_num_heads": call.key.shape[1],
                "scale": call.scale,
                "local_window_size": call.window or -1,
                "softcap": call.softcap,
            },
            dtypes=[call.query.dtype] * 3,
            shapes=[[batch, sequence, heads * head_dim], present, present],
            version=1,
        )
        return output.view(batch, sequence, heads, head_dim), present_key, present_value
