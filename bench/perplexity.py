"""Perplexity of one GGUF file: truecast's artifact with the file's own bits, and llama.cpp, on the same tokens.

Usage: perplexity.py MODEL.gguf [--chunks 8] [--work .bench/work] [--environments .bench/environments]
                     [--out docs/benchmarks]

The text is Python's own language reference (`pydoc_data.topics`), which every installation has. It is cut into chunks
of 512 tokens, each begun with the beginning-of-sequence token; the perplexity is over the second half of each chunk,
as llama.cpp's tool counts. Both contenders get the same token ids.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
from tokenizers import Tokenizer

import machine
from contenders import WORKERS
from decoder import environment
from environments import python_of
from truecast.runtime.decoder import Decoder
from truecast.runtime.model import TextModel
from workers.turns import THREADS

REPOSITORY = Path(__file__).parents[1]
CHUNK = 512
"""Tokens per chunk, the first of which begins the sequence."""


def chunks(folder: Path, count: int) -> list[list[int]]:
    """The token ids of the first `count` chunks of the text."""
    text = "\n\n".join(topics.topics[name] for name in sorted(topics.topics))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    first = tokenizer.encode("").ids[:1]
    ids = tokenizer.encode(text[: CHUNK * count * 8], add_special_tokens=False).ids
    step = CHUNK - len(first)
    return [first + ids[start : start + step] for start in range(0, step * count, step)]


def losses(logits: Any, ids: list[int]) -> Any:
    """-log p of every token of the second half, from the logits [tokens, vocabulary] of the chunk."""
    half = len(ids) // 2
    wide = logits[half:-1].astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    chosen = wide[np.arange(len(wide)), ids[half + 1 :]]
    return np.log(np.exp(wide).sum(-1)) - chosen


def truecast_losses(folder: Path, texts: list[list[int]]) -> Any:
    """Through truecast's runtime, as shipped."""
    decoder: Decoder = TextModel.open(folder, threads=THREADS).decoder
    found = []
    for ids in texts:
        cache = decoder.new_cache(1, len(ids))
        mask = np.ones((1, len(ids)), np.int64)
        found.append(losses(decoder.step(cache, np.array([ids], np.int64), mask, keep=0)[0], ids))
    return np.concatenate(found)


def llama_losses(python: Path, model: Path, texts: list[list[int]]) -> Any:
    """Through llama.cpp, in its own environment."""
    command = [str(python), str(WORKERS / "llama_losses.py"), str(model), str(THREADS)]
    answer = subprocess.run(
        command, input=json.dumps(texts), env=environment(), capture_output=True, text=True, check=True
    )
    return np.array(json.loads(answer.stdout.splitlines()[-1]))


def page(found: dict[str, Any]) -> str:
    """The report."""
    about = ", ".join(str(value) for value in found["machine"].values())
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in found["perplexity"].items())
    return f"""# Perplexity of one GGUF file

{found["date"]}; {about}.

`{found["model"]}`, {found["tokens"]} tokens counted in {found["chunks"]} chunks of {CHUNK} of Python's language \
reference; both contenders computed the same token ids from the same 4- to 8-bit weights, with int8 activations.

| contender | perplexity |
| --- | --- |
{rows}

Ratio of truecast's to llama.cpp's: {found["ratio"]:.4f}. Made by `python bench/perplexity.py`.
"""


def main() -> None:
    """Measures and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--work", type=Path, default=REPOSITORY / ".bench" / "work")
    parser.add_argument("--environments", type=Path, default=REPOSITORY / ".bench" / "environments")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "benchmarks")
    args = parser.parse_args()
    machine.pin(THREADS)
    folder = args.work / "perplexity"
    program = str(Path(sys.executable).with_name("truecast"))
    subprocess.run(
        [program, "export", args.model, folder, "--precision", "as-is", "--no-verify", "--force"], check=True
    )
    texts = chunks(folder, args.chunks)
    ours = truecast_losses(folder, texts)
    theirs = llama_losses(python_of(args.environments, "llama"), args.model, texts)
    perplexity = {"truecast": float(np.exp(ours.mean())), "llama.cpp": float(np.exp(theirs.mean()))}
    found = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine.describe(),
        "model": args.model.name,
        "chunks": len(texts),
        "tokens": len(ours),
        "perplexity": perplexity,
        "ratio": perplexity["truecast"] / perplexity["llama.cpp"],
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "perplexity.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (args.out / "perplexity.md").write_text(page(found), encoding="utf-8")
    print(page(found))


if __name__ == "__main__":
    main()
