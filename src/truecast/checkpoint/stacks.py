"""Stacks: the matrices of a layer's experts, each a tensor of the file, as the one parameter that the model has.

Data flow: a row of matrices [out, in] for each expert → `stack` → a tensor [experts, out of all, in] whose `matrices`
read any run of rows of the matrices as one. Quantized alike, they stay encoded: codes and scales are read the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from truecast.checkpoint.encoding import Affine, Codebook, Encoding, Factor
from truecast.checkpoint.model import Array, Reader, StoredTensor
from truecast.errors import InputError


def stack(name: str, experts: Sequence[Sequence[StoredTensor]]) -> StoredTensor:
    """The matrices of all experts as one tensor; those of one expert lie one below the other.

    Raises:
        InputError: they are no matrices of the same shapes.
    """
    shapes = {tuple(tensor.shape for tensor in row) for row in experts}
    first = experts[0]
    if len(shapes) > 1 or any(len(t.shape) != 2 or t.shape[1] != first[0].shape[1] for t in first):
        raise InputError(
            f"The experts of {name} in {first[0].location.path} are no matrices of the same shape; "
            "the checkpoint is damaged, download or save it again."
        )
    members = [tensor for row in experts for tensor in row]
    rows, width = sum(tensor.shape[0] for tensor in first), first[0].shape[1]
    matrices = _below_each_other(name, members, (len(experts) * rows, width))

    def read(start: int, stop: int) -> Array:
        return matrices.rows(start * rows, stop * rows).reshape(stop - start, rows, width)

    return replace(matrices, shape=(len(experts), rows, width), reader=read, encoding=None, matrices=matrices)


def _below_each_other(name: str, members: Sequence[StoredTensor], shape: tuple[int, int]) -> StoredTensor:
    dtypes = {tensor.dtype for tensor in members}
    counts = [tensor.shape[0] for tensor in members]
    return StoredTensor(
        name=name,
        shape=shape,
        dtype=dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32),
        stored_as=" + ".join(dict.fromkeys(tensor.stored_as for tensor in members)),
        location=members[0].location,
        reader=joined([tensor.reader for tensor in members], counts),
        encoding=_encoding([tensor.encoding for tensor in members], counts),
        parts=tuple(part for tensor in members for part in (tensor.parts or (tensor,))),
    )


def joined(readers: Sequence[Reader], counts: Sequence[int]) -> Reader:
    """Reads rows of several tensors, which have `counts` rows each, as those of one."""
    ends = np.cumsum(counts)

    def read(start: int, stop: int) -> Array:
        pieces, end = [], len(counts) - 1
        first = min(int(np.searchsorted(ends, start, side="right")), end)
        last = min(max(int(np.searchsorted(ends, stop, side="left")), first), end)
        for index in range(first, last + 1):
            begin = int(ends[index]) - counts[index]
            pieces.append(readers[index](max(start - begin, 0), min(stop - begin, counts[index])))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    return read


def taking_turns(read: Reader, outputs: int) -> Reader:
    """Of each `outputs` rows, the first and the second half take turns: first 0, second 0, first 1, …"""
    half = outputs // 2

    def turns(start: int, stop: int) -> Array:
        pieces = [read(start, start)]
        while start < stop:
            first = start - start % outputs
            low, high = start - first, min(stop - first, outputs)
            pairs = low // 2, -(-high // 2)
            both = [read(first + side + pairs[0], first + side + pairs[1]) for side in (0, half)]
            rows = np.stack(both, 1).reshape(-1, *both[0].shape[1:])
            pieces.append(rows[low - 2 * pairs[0] : high - 2 * pairs[0]])
            start = first + high
        return np.concatenate(pieces)

    return turns


def reordered(matrix: StoredTensor, order: Callable[[Reader], Reader]) -> StoredTensor:
    """The same rows in another order: values, codes, scales and zero points alike."""

    def factors(of: Sequence[Factor]) -> tuple[Factor, ...]:
        return tuple(replace(factor, read=order(factor.read)) for factor in of)

    encoding: Encoding | None = matrix.encoding
    if encoding is not None:
        encoding = replace(encoding, codes=order(encoding.codes), scales=factors(encoding.scales))
    if isinstance(encoding, Affine):
        zero = encoding.zero if isinstance(encoding.zero, int) else order(encoding.zero)
        encoding = replace(encoding, zero=zero, offsets=factors(encoding.offsets))
    return replace(matrix, reader=order(matrix.reader), encoding=encoding, verbatim=False)


def rows_as(tensor: StoredTensor, name: str, start: int, stop: int) -> StoredTensor:
    """Rows [start, stop) of a tensor as one of their own, encoded as it is."""

    def shifted(read: Reader) -> Reader:
        return lambda first, last: read(start + first, start + last)

    parts = tensor.parts or (tensor,)
    return replace(reordered(tensor, shifted), name=name, shape=(stop - start, *tensor.shape[1:]), parts=parts)


def _encoding(encodings: Sequence[Encoding | None], counts: Sequence[int]) -> Encoding | None:
    """The encoding of all rows; None where they are not encoded alike."""
    known = [encoding for encoding in encodings if encoding is not None]
    if len(known) < len(encodings) or len({_kind(encoding) for encoding in known}) > 1:
        return None
    first = known[0]
    codes = joined([encoding.codes for encoding in known], counts)
    scales = _factors([encoding.scales for encoding in known], counts)
    if isinstance(first, Codebook):
        return replace(first, codes=codes, scales=scales)
    affine = [encoding for encoding in known if isinstance(encoding, Affine)]
    zeros = [encoding.zero for encoding in affine if not isinstance(encoding.zero, int)]
    zero = joined(zeros, counts) if zeros else first.zero
    offsets = _factors([encoding.offsets for encoding in affine], counts)
    return replace(first, codes=codes, scales=scales, zero=zero, offsets=offsets)


def _factors(of_members: Sequence[tuple[Factor, ...]], counts: Sequence[int]) -> tuple[Factor, ...]:
    return tuple(
        replace(together[0], read=joined([factor.read for factor in together], counts))
        for together in zip(*of_members, strict=True)
    )


def _kind(encoding: Encoding) -> tuple[object, ...]:
    """What encodings must share to be one: everything but the numbers themselves."""
    scales = tuple((factor.dtype, factor.columns) for factor in encoding.scales)
    common = (type(encoding), encoding.bits, encoding.group, scales)
    if isinstance(encoding, Codebook):
        return (*common, encoding.table.tobytes())
    zero = encoding.zero if isinstance(encoding.zero, int) else None
    offsets = tuple((factor.dtype, factor.columns) for factor in encoding.offsets)
    return (*common, zero, offsets, None if encoding.order is None else encoding.order.tobytes())
