"""Whether onnxruntime-genai, where it is installed, gives the ids of tokenizer.json.

Data flow: the artifact's tokenizer files beside a graph of nothing → onnxruntime-genai's tokenizer, told to add special
tokens → its ids of a page of text against those of the tokenizers library.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from onnx import TensorProto, helper
from tokenizers import Tokenizer

from truecast.artifact import Check
from truecast.proof.tally import broken, counted

TIER, NAME, LIBRARY = "tokens", "genai's ids of a page of text", "onnxruntime_genai"
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
PAGE = (
    "The capital of France is Paris.",
    "a  b   c    d",
    "def f(x):\n    if x:\n        return [1,  2]  # ok",
    '{\n\t"key":\t[1, 2,   3]\n}',
    "In 1212 the 12345 and 3.14.",
    "don't WE'LL they're",
    "北京 日本語 한국어 Москва naïve café",
    "🙂 👍🏽 👩‍👩‍👧",
    "trailing  ",
)
"""Lines of which every id must be the same."""
EDGES = ("  leading spaces", "one\n\n\ntwo\n", "\r\n\ttabs\r\n", "e\u0301 composed")
"""Lines that onnxruntime-extensions is known to split otherwise for some vocabularies; differences are only noted."""


def genai_token_checks(folder: Path) -> tuple[list[Check], list[str]]:
    """The check of the artifact in `folder`, and notes; neither where there is nothing to compare."""
    if importlib.util.find_spec(LIBRARY) is None or not (folder / FILES[0]).is_file():
        return [], []
    if json.loads((folder / FILES[0]).read_bytes()).get("model", {}).get("type") != "BPE":
        return [], ["onnxruntime-genai's tokenizer was not compared: the vocabulary is no byte-pair encoding."]
    try:
        return _compared(folder)
    except Exception as error:  # whatever the library does not take
        return [broken(TIER, NAME, str(error).splitlines()[0] if str(error) else type(error).__name__)], []


def _compared(folder: Path) -> tuple[list[Check], list[str]]:
    ours = Tokenizer.from_file(str(folder / FILES[0]))
    ours.no_truncation()
    ours.no_padding()
    theirs = _genai_tokenizer(folder)
    special = [f"{token.content}hi" for token in ours.get_added_tokens_decoder().values() if token.special][:8]
    odd = {text: difference(ours, theirs, text) for text in (*PAGE, *EDGES, *special)}
    faults = [f"{text!r}: {odd[text]}" for text in PAGE if odd[text]]
    edges = [text for text in (*EDGES, *special) if odd[text]]
    check = counted(TIER, NAME, faults, "lines", f"{len(PAGE)} lines")
    if not edges:
        return [check], []
    return [check], [
        f"onnxruntime-genai gives other ids than tokenizer.json for {len(edges)} of {len(EDGES) + len(special)} odd "
        f"texts, the first {edges[0]!r} ({odd[edges[0]]}); those of tokenizer.json are meant."
    ]


def difference(ours: Tokenizer, theirs: Any, text: str) -> str:
    """Where the ids of a text part; empty where they are the same."""
    want, got = ours.encode(text).ids, [int(token) for token in theirs.encode(text)]
    if want == got:
        return ""
    first = next((i for i, (a, b) in enumerate(zip(want, got, strict=False)) if a != b), min(len(want), len(got)))
    return f"from token {first} on {got[first : first + 3]} instead of {want[first : first + 3]}"


def _genai_tokenizer(folder: Path) -> Any:
    library: Any = importlib.import_module(LIBRARY)
    with TemporaryDirectory() as scratch:
        place = Path(scratch)
        for name in FILES:
            if (folder / name).is_file():
                shutil.copy(folder / name, place / name)
        _write_graph(place)
        tokenizer = library.Tokenizer(library.Model(str(place)))
    tokenizer.update_options(add_special_tokens="true")
    return tokenizer


def _write_graph(folder: Path) -> None:
    """A decoder without weights: onnxruntime-genai opens a tokenizer only with a model."""
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"])
    cache = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch_size", 1, length, 1])
        for name, length in (("past_key_values.0.key", "past"), ("past_key_values.0.value", "past"))
    ]
    present = [
        helper.make_tensor_value_info(f"present.0.{part}", TensorProto.FLOAT, ["batch_size", 1, "total", 1])
        for part in ("key", "value")
    ]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch_size", "sequence_length", 1])
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["floats", "axis"], ["logits"]),
        *(helper.make_node("Identity", [c.name], [p.name]) for c, p in zip(cache, present, strict=True)),
    ]
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [2])
    graph = helper.make_graph(nodes, "nothing", [ids, *cache], [logits, *present], [axis])
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "model.onnx")
    names = {part: f"past_key_values.%d.{part}" for part in ("key", "value")}
    decoder = {
        "filename": "model.onnx",
        "head_size": 1,
        "hidden_size": 1,
        "num_attention_heads": 1,
        "num_hidden_layers": 1,
        "num_key_value_heads": 1,
        "session_options": {"provider_options": []},
        "inputs": {"input_ids": "input_ids", **{f"past_{part}_names": name for part, name in names.items()}},
        "outputs": {"logits": "logits", **{f"present_{part}_names": f"present.%d.{part}" for part in names}},
    }
    model = {"type": "decoder", "vocab_size": 1, "context_length": 8, "eos_token_id": 0, "pad_token_id": 0}
    (folder / "genai_config.json").write_text(json.dumps({"model": {**model, "decoder": decoder}, "search": {}}))
