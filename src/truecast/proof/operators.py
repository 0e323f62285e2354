"""The operators of com.microsoft in NumPy, written from their specification, for the proof's second opinion.

They share no code with the quantizers or the exporter, and take what ONNX Runtime's documentation of each operator says
literally (docs/ContribOperators.md). `EVALUATED` gives them to onnx's reference evaluator, which brings the standard
operators itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

Array = NDArray[Any]
CONTRIB = "com.microsoft"
BYTE_BITS = 8


def unpack_codes(packed: Array, bits: int) -> Array:
    """Unsigned codes from bytes [..., n]: uint8 [..., n · 8 / bits], the lowest bits of a byte first."""
    if bits == BYTE_BITS:
        return packed
    shifts = np.arange(0, BYTE_BITS, bits, dtype=np.uint8)
    codes: Array = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return codes.reshape(*packed.shape[:-1], -1)


def dequantize(codes: Array, scales: Array, bits: int, block: int, width: int, zeros: Array | None = None) -> Array:
    """Weights float32 [rows, width] of MatMulNBits and GatherBlockQuantized: (code - zero point) · scale.

    Args:
        codes: bytes of `rows` rows, in any shape that starts with the rows.
        scales: [rows, blocks].
        bits: of one code.
        block: weights per scale.
        width: weights per row; the rest of the last block is padding.
        zeros: packed zero points [rows, …]; without them every zero point is 2^(bits-1).
    """
    rows, blocks = scales.shape
    values = unpack_codes(codes.reshape(rows, -1), bits)[:, : blocks * block].astype(np.float32)
    values = values.reshape(rows, blocks, block)
    if zeros is None:
        values -= np.float32(1 << (bits - 1))
    else:
        values -= unpack_codes(zeros.reshape(rows, -1), bits)[:, :blocks, None].astype(np.float32)
    values *= scales.astype(np.float32)[..., None]
    return values.reshape(rows, -1)[:, :width]


FP4 = (0, 0.0052083333, 0.66666667, 1, 0.33333333, 0.5, 0.16666667, 0.25)
NF4 = (
    *(-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1),
)
BNB_TABLES = {0: np.array((*FP4, *(-value for value in FP4)), np.float32), 1: np.array(NF4, np.float32)}
"""MatMulBnb4's tables by quant_type; of FP4 the positive half is given first."""


def bnb4_values(codes: Array, scales: Array, block: int, kind: int) -> Array:
    """Weights of MatMulBnb4, flat: table[code] · scale of its block; the high bits of a byte come first."""
    pairs = np.stack((codes >> 4, codes & 15), -1).reshape(-1)
    values: Array = BNB_TABLES[kind][pairs].reshape(-1, block) * scales.astype(np.float32)[:, None]
    return values.reshape(-1)


def cache_values(codes: Array, scale: Array, bits: int) -> Array:
    """Keys or values float32 [..., width] of a quantized cache; 4-bit codes are stored plus 8, the even ones first."""
    signed = codes if bits == BYTE_BITS else unpack_codes(codes, bits).astype(np.int8) - 8
    values: Array = signed.astype(np.float32) * scale
    return values


class MatMulBnb4(OpRun):
    """y = x · dequantized(B)ᵀ."""

    op_domain = CONTRIB

    def _run(self, x: Array, b: Array, scales: Array, **attributes: Any) -> tuple[Array]:
        k, n, block, kind = (int(attributes[name]) for name in ("K", "N", "block_size", "quant_type"))
        weight = bnb4_values(b, scales, block, kind).reshape(n, k)
        return ((x.astype(np.float32) @ weight.T).astype(x.dtype),)


class MatMulNBits(OpRun):
    """y = x · dequantized(B)ᵀ + bias."""

    op_domain = CONTRIB

    def _run(self, x: Array, b: Array, scales: Array, *rest: Array | None, **attributes: Any) -> tuple[Array]:
        k, n, bits, block = (int(attributes[name]) for name in ("K", "N", "bits", "block_size"))
        zeros = rest[0] if rest else None
        bias = rest[2] if len(rest) > 2 else None
        weight = dequantize(b, scales.reshape(n, -1), bits, block, k, zeros)
        y = x.astype(np.float32) @ weight.T
        return (np.asarray(y if bias is None else y + bias, x.dtype),)


def shares(logits: Array, chosen: int, normalize: bool) -> Array:
    """What MoE weighs experts with, [tokens, experts]: their softmax, 0 for all but the `chosen` largest.

    With `normalize`, divided by their sum.
    """
    weights = np.exp(logits.astype(np.float32) - logits.max(1, keepdims=True).astype(np.float32))
    weights /= weights.sum(1, keepdims=True)
    left_out = np.argsort(-weights, axis=1, kind="stable")[:, chosen:]
    np.put_along_axis(weights, left_out, 0, axis=1)
    result: Array = weights / weights.sum(1, keepdims=True) if normalize else weights
    return result


def activated(x: Array, attributes: Mapping[str, Any]) -> Array:
    """The activation between MoE's products, float32; swiglu's rows of gate and linear part take turns."""
    kind = attributes["activation_type"]
    kind = kind.decode() if isinstance(kind, bytes) else kind
    if kind == "identity":
        return x
    if kind == "relu":
        return np.maximum(x, 0)
    if kind == "silu":
        return np.asarray(x * sigmoid(x))
    if kind != "swiglu" or not attributes.get("swiglu_fusion") == 1:
        raise NotImplementedError(kind)
    gate, linear = x[:, 0::2], x[:, 1::2]
    if limit := attributes.get("swiglu_limit"):
        gate, linear = np.minimum(gate, np.float32(limit)), np.clip(linear, np.float32(-limit), np.float32(limit))
    alpha, beta = (np.float32(attributes[f"activation_{name}"]) for name in ("alpha", "beta"))
    return np.asarray(gate * sigmoid(alpha * gate) * (linear + beta))


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1, small) / (1 + small), np.float32)


UNDECIDED = 2e-4
"""Steps from the middle of two codes within which the last bits of a sum decide: 127 steps times 1.5e-6, what sums in
float32 leave."""


def rounded(x: Array, block: int) -> tuple[Array, Array]:
    """x [rows, width] as products with int8 activations take it: 127 steps for the largest of each block.

    Beside it the step of each value that lies in the middle of two codes, of which either is right; 0 for the others.
    """
    blocks = x.reshape(len(x), -1, block)
    step = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(step > 0, blocks * (np.float32(1) / step), 0)
    codes, middle = np.rint(steps), np.abs(steps - np.floor(steps) - 0.5) < UNDECIDED
    result: Array = (codes * step).astype(np.float32).reshape(x.shape)
    return result, np.where(middle, step, 0).astype(np.float32).reshape(x.shape)


Expert = tuple[Array, Array | None, Array, Array | None]
"""Weight [inner, width] and bias of the first product of one expert, weight [width, inner] and bias of the second."""


def mixture(
    x: Array, weights: Array, expert: Callable[[int], Expert], attributes: Mapping[str, Any], block: int = 0
) -> tuple[Array, Array]:
    """What MoE and QMoE compute, float32 [tokens, width], and how far off a kernel may be that rounds to int8.

    That is where the input of the second product, which is computed, lies in the middle of two codes.

    Args:
        x: float32 [tokens, width].
        weights: [tokens, experts], 0 where an expert was not chosen.
        expert: the weights of one expert.
        attributes: of the node.
        block: weights per scale where the kernel rounds what products take to int8, else 0.
    """
    result, leeway = np.zeros_like(x), np.zeros_like(x)
    for number in np.flatnonzero(weights.any(0)):
        rows = np.flatnonzero(weights[:, number])
        first, first_bias, second, second_bias = expert(int(number))
        inner = (rounded(x[rows], block)[0] if block else x[rows]) @ first.T
        inner = activated(inner if first_bias is None else inner + first_bias, attributes)
        taken, undecided = rounded(inner, block) if block else (inner, np.zeros_like(inner))
        out = taken @ second.T
        result[rows] += weights[rows, number, None] * (out if second_bias is None else out + second_bias)
        leeway[rows] += weights[rows, number, None] * (undecided @ np.abs(second.T))
    return result, leeway


class MoE(OpRun):
    """Experts with weights of floats."""

    op_domain = CONTRIB

    def _run(self, x: Array, logits: Array, first: Array, *rest: Array | None, **attributes: Any) -> tuple[Array]:
        bias, second, last_bias = [*rest, None][:3]
        assert second is not None

        def expert(number: int) -> Expert:
            biases = [None if b is None else b[number].astype(np.float32) for b in (bias, last_bias)]
            return first[number].astype(np.float32), biases[0], second[number].astype(np.float32), biases[1]

        weights = shares(logits, int(attributes["k"]), bool(attributes.get("normalize_routing_weights")))
        flat = x.reshape(-1, x.shape[-1]).astype(np.float32)
        return (mixture(flat, weights, expert, attributes)[0].reshape(x.shape).astype(x.dtype),)


class QMoE(OpRun):
    """Experts with weights of codes, products of floats."""

    op_domain = CONTRIB

    def _run(self, x: Array, logits: Array, *rest: Array | None, **attributes: Any) -> tuple[Array]:
        given = [*rest, *(None,) * 11][:11]
        bits, block = int(attributes["expert_weight_bits"]), int(attributes["block_size"])

        def weight(number: int, codes: Array, scales: Array, zeros: Array | None) -> Array:
            width = codes.shape[2] * BYTE_BITS // bits
            return dequantize(
                codes[number], scales[number], bits, block, width, None if zeros is None else zeros[number]
            )

        def expert(number: int) -> Expert:
            biases = [None if given[i] is None else given[i][number].astype(np.float32) for i in (2, 5)]  # type: ignore[index]
            first, second = (weight(number, given[i], given[i + 1], given[z]) for i, z in ((0, 9), (3, 10)))  # type: ignore[arg-type]
            return first, biases[0], second, biases[1]

        weights = shares(logits, int(attributes["k"]), bool(attributes.get("normalize_routing_weights")))
        flat = x.reshape(-1, x.shape[-1]).astype(np.float32)
        return (mixture(flat, weights, expert, attributes)[0].reshape(x.shape).astype(x.dtype),)


class GatherBlockQuantized(OpRun):
    """Rows of a quantized table."""

    op_domain = CONTRIB

    def _run(
        self, data: Array, indices: Array, scales: Array, zeros: Array | None = None, **attributes: Any
    ) -> tuple[Array]:
        bits, block = int(attributes["bits"]), int(attributes["block_size"])
        flat = indices.reshape(-1)
        rows, width = data[flat], data.shape[1] * BYTE_BITS // bits
        values = dequantize(rows, scales[flat], bits, block, width, None if zeros is None else zeros[flat])
        return (values.reshape(*indices.shape, width).astype(scales.dtype),)


class FusedMatMul(OpRun):
    """alpha · A · B, either transposed first."""

    op_domain = CONTRIB

    def _run(self, a: Array, b: Array, **attributes: Any) -> tuple[Array]:
        a = np.swapaxes(a, -1, -2) if attributes.get("transA") else a
        b = np.swapaxes(b, -1, -2) if attributes.get("transB") else b
        return ((np.float32(attributes.get("alpha") or 1.0) * (a.astype(np.float32) @ b)).astype(a.dtype),)


class SimplifiedLayerNormalization(OpRun):
    """x · scale / sqrt(mean(x²) + epsilon) over the last axis."""

    op_domain = ""

    def _run(self, x: Array, scale: Array, **attributes: Any) -> tuple[Array]:
        wide = x.astype(np.float32)
        root = np.sqrt(np.mean(wide * wide, -1, keepdims=True) + np.float32(attributes["epsilon"]))
        return ((wide / root * scale).astype(x.dtype),)


class RotaryEmbedding(OpRun):
    """Rotates the pairs of every head by the row of the table that belongs to its position."""

    op_domain = CONTRIB

    def _run(self, x: Array, positions: Array, cos: Array, sin: Array, **attributes: Any) -> tuple[Array]:
        batch, sequence = positions.shape
        heads = int(attributes.get("num_heads") or 0)
        width = x.shape[-1] // heads if heads else 2 * cos.shape[1]
        states = x.reshape(batch, sequence, -1, width).transpose(0, 2, 1, 3)
        interleaved = bool(attributes.get("interleaved"))
        result = turned(states, cos[positions][:, None], sin[positions][:, None], interleaved)
        return (result.transpose(0, 2, 1, 3).reshape(x.shape),)


class GroupQueryAttention(OpRun):
    """Causal attention of new tokens over past and new ones, in the order of the cache; may split and rotate first."""

    op_domain = CONTRIB

    def _run(self, q: Array, k: Any, v: Any, *rest: Any, **attrs: Any) -> tuple[Array, Array, Array]:
        past_k, past_v, last, total, cos, sin, _, bias, sinks = [*rest, *(None,) * 9][:9]
        query, key, value = split_heads(q, k, v, int(attrs["num_heads"]), int(attrs["kv_num_heads"]))
        length, new = int(np.asarray(total).reshape(-1)[0]), query.shape[2]
        present_k, present_v = (np.zeros((*x.shape[:2], length, x.shape[3]), x.dtype) for x in (key, value))
        out = np.zeros(query.shape, np.float32)
        for row in range(len(query)):
            past = max(int(last[row]) + 1 - new, 0) if length > new else 0
            states, fresh = query[row], key[row]
            if attrs.get("do_rotary"):
                tables = (cos[past : past + new], sin[past : past + new])
                states, fresh = (turned(x, *tables, bool(attrs.get("rotary_interleaved"))) for x in (states, fresh))
            for present, old, newest in ((present_k, past_k, fresh), (present_v, past_v, value[row])):
                present[row, :, :past] = old[row, :, :past]
                present[row, :, past : past + new] = newest
            row_bias = None if bias is None else bias[min(row, len(bias) - 1)]
            out[row] = attend(states, present_k[row], present_v[row], past, row_bias, sinks, attrs)
        flat = out.transpose(0, 2, 1, 3)
        return flat.reshape(*flat.shape[:2], -1).astype(q.dtype), present_k, present_v


def split_heads(q: Array, k: Array | None, v: Array | None, heads: int, groups: int) -> list[Array]:
    """Queries, keys and values [batch, heads, sequence, width]; without keys, `q` holds all three side by side."""
    if k is None or v is None:
        width = q.shape[-1] // (heads + 2 * groups)
        q, k, v = np.split(q, [heads * width, (heads + groups) * width], axis=-1)
    shaped = [x.reshape(*x.shape[:2], n, -1) for x, n in ((q, heads), (k, groups), (v, groups))]
    return [x.transpose(0, 2, 1, 3) for x in shaped]


def turned(x: Array, cos: Array, sin: Array, interleaved: bool) -> Array:
    """x [..., sequence, width] rotated by cos and sin [sequence, pairs]; what lies beyond the pairs stays."""
    width = 2 * cos.shape[-1]
    moved, rest = x[..., :width].astype(np.float32), x[..., width:]
    halves = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(0, width // 2), slice(width // 2, None))
    a, b = (moved[..., half] for half in halves)
    result = np.empty_like(moved)
    result[..., halves[0]], result[..., halves[1]] = a * cos - b * sin, a * sin + b * cos
    return np.concatenate((result, rest), -1).astype(x.dtype)


def attend(
    q: Array, k: Array, v: Array, past: int, bias: Array | None, sinks: Array | None, attrs: dict[str, Any]
) -> Array:
    """One row: q [heads, new, width], k and v [groups, total, width]."""
    repeat = q.shape[0] // k.shape[0]
    keys, values = (np.repeat(x.astype(np.float32), repeat, 0) for x in (k, v))
    scale = attrs.get("scale") or q.shape[-1] ** -0.5
    scores = q.astype(np.float32) @ keys.transpose(0, 2, 1) * np.float32(scale)
    if softcap := attrs.get("softcap"):
        scores = softcap * np.tanh(scores / np.float32(softcap))
    if bias is not None:
        scores = scores + bias[..., -q.shape[1] :, : keys.shape[1]]
    at, seen = past + np.arange(q.shape[1])[:, None], np.arange(keys.shape[1])[None, :]
    window = int(attrs.get("local_window_size") or -1)
    hidden = (seen > at) | ((seen <= at - window) if window > 0 else False)
    scores = np.where(hidden, -np.inf, scores)
    if sinks is not None:
        scores = np.concatenate((scores, np.broadcast_to(sinks[:, None, None], (*scores.shape[:2], 1))), -1)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    result: Array = weights[..., : keys.shape[1]] @ values
    return result


EVALUATED = (
    MatMulBnb4,
    MatMulNBits,
    MoE,
    QMoE,
    GatherBlockQuantized,
    FusedMatMul,
    SimplifiedLayerNormalization,
    RotaryEmbedding,
    GroupQueryAttention,
)
