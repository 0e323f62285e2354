"""One step of a decoder: token ids and a mask in, logits out, the cache moved on.

The cache is bound once (see `cache`), the small inputs are bound by pointer, and the logits come back as a view of ONNX
Runtime's own output. Generation uses the leaner `loop` from the second token on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from truecast.artifact import GraphInfo, read_manifest
from truecast.errors import InputError
from truecast.runtime.cache import ConcatenatedCache, KeyValueCache, SharedCache, cache_tensors
from truecast.runtime.pages import release_leftovers, use_huge_pages
from truecast.runtime.providers import NOTHING, open_session

KEEP_NAME = "num_logits_to_keep"
Ids = NDArray[np.int64]
Logits = NDArray[np.float32]


class Decoder:
    """A decoder graph and its session. `info` is what the manifest says of the graph."""

    def __init__(self, session: ort.InferenceSession, info: GraphInfo) -> None:
        self.session, self.info = session, info
        self._tensors = cache_tensors(info)
        self.takes_positions = "position_ids" in {value.name for value in session.get_inputs()}
        self._has_keep = KEEP_NAME in {value.name for value in session.get_overridable_initializers()}

    @classmethod
    def open(
        cls,
        folder: Path | str,
        provider: str = "cpu",
        threads: int | None = None,
        *,
        exact: bool = False,
        entries: Mapping[str, str] = NOTHING,
    ) -> Self:
        """Opens the artifact in `folder` to generate with; see `open_session` for the other arguments.

        The weights are gathered into huge pages, which takes 0.03 to 0.2 s per 100 MB. Raises InputError.
        """
        folder = Path(folder)
        info = read_manifest(folder).graph
        if provider.lower() != "cpu":
            raise InputError(f"Decoding on {provider} is not possible yet, its cache lives in main memory; use cpu.")
        if info.cache is None:
            raise InputError(f"{folder} holds no decoder (no key/value cache); export a language model instead.")
        wanted = {**info.session_entries, **entries}
        session = open_session(folder / info.file, provider, threads, exact=exact, entries=wanted)
        release_leftovers(folder.resolve())
        use_huge_pages()
        return cls(session, info)

    @property
    def in_place(self) -> bool:
        """Whether past and present share a buffer."""
        return self.info.cache is not None and self.info.cache.in_place

    def new_cache(self, batch: int, capacity: int | None = None) -> KeyValueCache:
        """An empty cache for `batch` rows with room for `capacity` positions (it grows when they do not suffice)."""
        limit = self.info.context_length
        if self.in_place:
            return SharedCache(self.session, self._tensors, batch, capacity, limit)
        return ConcatenatedCache(self.session, self._tensors, batch, limit)

    def step(
        self,
        cache: KeyValueCache,
        input_ids: Ids,
        attention_mask: Ids | None = None,
        *,
        keep: int = 1,
        position_ids: Ids | None = None,
    ) -> Logits:
        """Runs `input_ids` [batch, new] after what the cache holds; returns logits float32 [batch, keep, vocab].

        `attention_mask` [batch, cache.length + new] holds 0 or 1; None means all ones. `keep=0` returns the logits of
        all `new` positions. `position_ids` [batch, new] default to the count of ones before each position. The result
        is the caller's to keep. Raises ValueError on shapes that do not fit, InputError past the context length.
        """
        new, total = input_ids.shape[1], cache.length + input_ids.shape[1]
        mask = np.ones((cache.batch, total), np.int64) if attention_mask is None else attention_mask
        _check_shapes(cache, input_ids, mask)
        cache.prepare(new)
        binding = cache.binding
        binding.bind_cpu_input("input_ids", _contiguous(input_ids))
        binding.bind_cpu_input("attention_mask", _contiguous(mask))
        if self.takes_positions:
            ids = positions(mask, new) if position_ids is None else position_ids
            binding.bind_cpu_input("position_ids", _contiguous(ids))
        self.bind_keep(binding, keep)
        binding.bind_output("logits", "cpu")
        self.session.run_with_iobinding(binding)
        logits: Logits = binding.get_outputs_as_ortvaluevector()[0].numpy()
        cache.advance(new)
        return logits

    def bind_keep(self, binding: ort.IOBinding, keep: int) -> None:
        """Makes runs return the logits of the last `keep` positions, of all for 0; InputError when they cannot."""
        if self._has_keep:
            binding.bind_ortvalue_input(KEEP_NAME, ort.OrtValue.ortvalue_from_numpy(np.array(keep, np.int64)))
        elif keep != 1:
            raise InputError(f"The graph has no {KEEP_NAME}, so it gives one position's logits only; export it again.")


def positions(mask: Ids, new: int) -> Ids:
    """Positions [batch, new] of the last `new` columns of a mask [batch, total]: the ones before each, at least 0."""
    split = mask.shape[1] - new
    before = mask[:, :split].sum(axis=1, keepdims=True)
    counted: Ids = before + mask[:, split:].cumsum(axis=1)
    return np.maximum(counted - 1, 0)


def _contiguous(array: Ids) -> Ids:
    return np.ascontiguousarray(array, np.int64)


def _check_shapes(cache: KeyValueCache, input_ids: Ids, mask: Ids) -> None:
    expected = (cache.batch, cache.length + input_ids.shape[1])
    if input_ids.shape[0] != cache.batch or mask.shape != expected:
        raise ValueError(
            f"token ids {input_ids.shape} and mask {mask.shape} do not fit a cache of {cache.batch} rows holding "
            f"{cache.length} positions; the mask must be {expected}"
        )
