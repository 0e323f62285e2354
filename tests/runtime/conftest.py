"""Tiny artifacts, one per padding contract and kind of cache, opened once."""

from collections.abc import Callable

import pytest

from tests.runtime.graphs import write_artifact
from truecast.runtime.decoder import Decoder

OpenDecoder = Callable[..., Decoder]


@pytest.fixture(scope="session")
def open_decoder(tmp_path_factory: pytest.TempPathFactory) -> OpenDecoder:
    """Opens the tiny decoder with the given contract, on one thread."""
    opened: dict[tuple[str, bool, tuple[int, ...]], Decoder] = {}

    def open_one(padding: str = "any", in_place: bool = True, eos: tuple[int, ...] = ()) -> Decoder:
        key = (padding, in_place, eos)
        if key not in opened:
            folder = write_artifact(tmp_path_factory.mktemp("artifact"), padding, in_place, eos)
            opened[key] = Decoder.open(folder, threads=1)
        return opened[key]

    return open_one
