"""The small models that the manual's commands work on: `python -m tests.docs.folders FOLDER` writes them for each page.

Their weights are random; each is cast and proven in seconds. The tests of the manual use the same ones.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from gguf import GGMLQuantizationType

import truecast
from tests.checkpoint.gguf.cases import BY_NAME as GGUF_CASES
from tests.conformance.cases import BY_NAME
from tests.docs.manual import WRITTEN, begins_with
from tests.encoders import classifier, sentences
from tests.tiny import tiny_checkpoint

QUANTIZED = Path(__file__).parents[1] / "data" / "gptqmodel-act-order"
"""What the manual calls `quantized`: 4-bit GPTQ with act-order."""
ENCODERS = {"classifier": classifier, "sentences": sentences}


def decoder(place: Path) -> Path:
    """What the manual calls `checkpoint`: a Llama of two layers with a tied head."""
    return tiny_checkpoint(BY_NAME["llama_tied"], place)


def furnish(place: Path, checkpoint: Path, artifact: Path) -> None:
    """Puts what a page begins with into place: a GGUF file, an artifact (`out`), or a checkpoint."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.suffix == ".gguf":
        GGUF_CASES["gemma3"].write(place, kind=GGMLQuantizationType.Q8_0)
    elif place.name in ENCODERS:
        ENCODERS[place.name](place)
    else:
        shutil.copytree({"out": artifact, "quantized": QUANTIZED}.get(place.name, checkpoint), place)


def main(folder: Path) -> None:
    """Writes the folder of every page that begins with something; an earlier one is replaced."""
    with TemporaryDirectory() as scratch:
        checkpoint = decoder(Path(scratch) / "checkpoint")
        artifact = truecast.export(checkpoint, Path(scratch) / "out", precision="int4").folder
        for page in WRITTEN:
            place = folder / page.stem
            shutil.rmtree(place, ignore_errors=True)
            for name in begins_with_small(page.read_text()):
                furnish(place / name, checkpoint, artifact)
    print(f"Each page of the manual has its folder in {folder}.")


def begins_with_small(text: str) -> list[str]:
    """What a page begins with but for the real model, which `make demo` fetches."""
    return [name for name in begins_with(text) if not name.endswith(".gguf")]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
