"""From what a user names to a module and its weights: folders with a task, factories, modules in memory."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    SeamlessM4TFeatureExtractor,
    SequenceFeatureExtractor,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
    Wav2Vec2BertConfig,
    Wav2Vec2BertForCTC,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
)

import truecast
from tests.encoders import Layers, classifier, layers_examples, sentences
from truecast.artifact import Status
from truecast.checkpoint.model import Checkpoint
from truecast.checkpoint.tasks import chosen_task, task_of
from truecast.errors import InputError
from truecast.trace.author import MODULE, AuthorModule, Axis
from truecast.trace.opening import ModuleSource, made_by, open_author


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text classifier that no test may change."""
    return classifier(tmp_path_factory.mktemp("opening") / "classifier")


Write = Callable[[str], str]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Write:
    """Writes a Python file where the command runs; gives its name, which no other test has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "factory_" + "".join(letter if letter.isalnum() else "_" for letter in request.node.name)

    def write(body: str) -> str:
        lines = textwrap.dedent(body)
        (tmp_path / f"{name}.py").write_text(f"import torch\nfrom torch import nn\n{lines}")
        return name

    return write


def refusal(source: ModuleSource) -> str:
    with pytest.raises(InputError) as refused:
        open_author(source)
    return str(refused.value)


def test_a_folder_takes_no_memory_and_its_task_is_found(folder: Path) -> None:
    author, checkpoint = open_author(ModuleSource(folder))
    assert author.mode is not None and author.is_pretrained
    assert author.task == "text-classification"
    assert type(author.module).__name__ == "BertForSequenceClassification"
    assert not author.module.training
    assert checkpoint.path == folder
    batch, length = Axis("batch_size"), Axis("sequence_length", 1, 80)
    assert [(spec.name, dict(spec.axes), spec.high) for spec in author.inputs] == [
        ("input_ids", {0: batch, 1: length}, 320),
        ("attention_mask", {0: batch, 1: length}, 2),
        ("token_type_ids", {0: batch, 1: length}, 2),
    ]


def test_the_tokenizer_may_stop_earlier_than_the_positions(folder: Path, tmp_path: Path) -> None:
    made = classifier(tmp_path / "short")
    file = made / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": 24}))
    author, _ = open_author(ModuleSource(made))
    assert author.axes["sequence_length"] == Axis("sequence_length", 1, 24)


def test_a_task_may_be_another_than_the_folders(folder: Path) -> None:
    author, _ = open_author(ModuleSource(folder, task="feature-extraction"))
    assert type(author.module).__name__ == "BertModel"


@pytest.mark.parametrize(
    ("classes", "task"),
    [
        (["BertForTokenClassification"], "token-classification"),
        (["BertForQuestionAnswering"], "question-answering"),
        (["BertForMaskedLM"], "fill-mask"),
        (["ViTForImageClassification"], "image-classification"),
        (["Wav2Vec2ForCTC"], "automatic-speech-recognition"),
        (["BertModel"], "feature-extraction"),
        (["LlamaForCausalLM"], "text-generation"),
        ([], "text-generation"),
    ],
)
def test_the_class_names_the_task(classes: list[str], task: str, folder: Path) -> None:
    _, checkpoint = open_author(ModuleSource(folder))
    changed = type(checkpoint)(folder, "safetensors", {"architectures": classes}, {}, {})
    assert task_of(changed) == task


def test_a_classifier_of_sounds_is_told_from_one_of_texts(folder: Path) -> None:
    _, checkpoint = open_author(ModuleSource(folder))
    config = {"architectures": ["HubertForSequenceClassification"], "feat_extract_norm": "group"}
    assert task_of(type(checkpoint)(folder, "safetensors", config, {}, {})) == "audio-classification"


def test_a_sentence_transformers_folder_is_known_by_its_modules(tmp_path: Path) -> None:
    author, _ = open_author(ModuleSource(sentences(tmp_path / "it")))
    assert author.task == "sentence-similarity"
    assert author.finish is not None
    assert author.axes["sequence_length"].high == 64  # as sentence_bert_config.json says


def test_an_unknown_task_is_refused_with_those_there_are(folder: Path) -> None:
    assert refusal(ModuleSource(folder, task="translation")).startswith(
        "There is no task 'translation'; choose one of text-generation, text-classification"
    )


def test_a_task_that_the_model_has_no_class_for_is_refused(tmp_path: Path) -> None:
    made = classifier(tmp_path / "bare")
    config = json.loads((made / "config.json").read_text()) | {"architectures": ["BertModel"]}
    (made / "config.json").write_text(json.dumps(config))
    assert refusal(ModuleSource(made, task="image-classification")).startswith(
        "'bert' cannot be cast for image-classification: "
    )


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("BertForSequenceClassification", "token-classification"),
        ("BertForTokenClassification", "text-classification"),
        ("BertForQuestionAnswering", "fill-mask"),
        ("BertForMultipleChoice", "text-classification"),
        ("Qwen3ForSequenceClassification", "text-generation"),
        ("Qwen3ForCausalLM", "text-classification"),
        ("GPT2LMHeadModel", "fill-mask"),
        ("Wav2Vec2ForCTC", "audio-classification"),
    ],
)
def test_a_head_is_not_taken_for_another_tasks(name: str, task: str, folder: Path) -> None:
    checkpoint = Checkpoint(folder, "safetensors", {"architectures": [name]}, {}, {})
    with pytest.raises(InputError, match=f"^A {name}, as .* says it is, has no head for {task}; leave --task out, or"):
        chosen_task(checkpoint, task)
    assert chosen_task(checkpoint, "feature-extraction") == "feature-extraction"
    assert chosen_task(checkpoint, None) == task_of(checkpoint)


@pytest.mark.parametrize(
    ("names", "task"),
    [
        (["BertModel"], "text-classification"),
        ([], "text-classification"),
        (["BertForPreTraining"], "fill-mask"),
        (["XLMWithLMHeadModel"], "fill-mask"),
        (["DeiTForImageClassificationWithTeacher"], "image-classification"),
        (["XLMForQuestionAnsweringSimple"], "question-answering"),
        (["LlamaForCausalLM"], "text-generation"),
        (["GPT2LMHeadModel"], "text-generation"),
    ],
)
def test_a_class_may_have_the_head_that_is_asked_for(names: list[str], task: str, folder: Path) -> None:
    assert chosen_task(Checkpoint(folder, "safetensors", {"architectures": names}, {}, {}), task) == task


def test_a_classifier_of_sounds_may_be_called_what_it_is(folder: Path) -> None:
    config = {"architectures": ["HubertForSequenceClassification"], "feat_extract_norm": "group"}
    checkpoint = Checkpoint(folder, "safetensors", config, {}, {})
    assert chosen_task(checkpoint, "audio-classification") == "audio-classification"


def test_a_module_in_memory_brings_its_weights() -> None:
    module = Layers()
    author, checkpoint = open_author(ModuleSource(module=module, example_inputs=layers_examples()))
    assert (author.mode, author.task, author.origin) == (None, MODULE, "a module in memory")
    assert not author.is_pretrained
    assert set(checkpoint.tensors) == set(module.state_dict())
    np.testing.assert_array_equal(checkpoint.tensors["norm.running_mean"].read(), module.norm.running_mean)
    assert checkpoint.tensors["norm.num_batches_tracked"].read().shape in ((), (1,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_module_of_any_float_is_cast_from_float32(dtype: torch.dtype) -> None:
    module, example = nn.Linear(8, 4).to(dtype), torch.zeros(1, 8, dtype=dtype)
    author, checkpoint = open_author(ModuleSource(module=module, example_inputs=example))
    assert module.weight.dtype is dtype
    assert {author.module.weight.dtype, author.inputs[0].example.dtype} == {torch.float32}
    stored = torch.from_numpy(np.array(checkpoint.tensors["weight"].read()))
    assert torch.equal(stored.to(torch.float64), module.weight.detach().to(torch.float64))


def test_a_module_needs_examples() -> None:
    assert refusal(ModuleSource(module=nn.Linear(2, 2))) == (
        "A module needs example_inputs: one tensor for every input of its forward()."
    )


def test_a_factory_may_give_a_module_alone_where_it_takes_tokens(folder: Path, package: Write) -> None:
    name = package(
        """
        from transformers import AutoModel
        class Two(nn.Module):
            def __init__(self, path):
                super().__init__()
                self.backbone = AutoModel.from_pretrained(path)
                self.config = self.backbone.config
                self.head = nn.Linear(64, 2)
            def forward(self, input_ids, attention_mask):
                return {"topic": self.head(self.backbone(input_ids, attention_mask).last_hidden_state[:, 0])}
        def make(path):
            return Two(path)
        """
    )
    author, checkpoint = open_author(ModuleSource(folder, factory=f"{name}:make"))
    assert [spec.name for spec in author.inputs] == ["input_ids", "attention_mask"]
    assert author.axes["sequence_length"] == Axis("sequence_length", 1, 80)
    assert author.origin == f"{name}:make"
    assert "tokenizer.json" in checkpoint.side_files


def test_a_factory_may_give_examples_and_free_axes(tmp_path: Path, package: Write) -> None:
    name = package(
        """
        def two(path):
            return nn.Linear(8, 4), torch.zeros(2, 5, 8)
        def three(path):
            return nn.Linear(8, 4), torch.zeros(2, 5, 8), {"input": {1: "length=1..9"}}
        """
    )
    two, _ = open_author(ModuleSource(tmp_path, factory=f"{name}:two"))
    three, _ = open_author(ModuleSource(tmp_path, factory=f"{name}:three"))
    given = {"dynamic": {"input": {0: "rows"}}, "example_inputs": torch.ones(4, 8)}
    asked, _ = open_author(ModuleSource(tmp_path, factory=f"{name}:three", **given))
    assert asked.inputs[0].example.shape == (4, 8)
    assert list(two.axes) == ["batch_size"]
    assert three.axes == {"length": Axis("length", 1, 9)}
    assert list(asked.axes) == ["rows"]


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("make", "--module make names no function; write package.file:function or FILE.py:function."),
        (":make", "--module :make names no function; write package.file:function or FILE.py:function."),
        ("NAME:", "--module NAME: names no function; write package.file:function or FILE.py:function."),
        (
            "nowhere.at_all:make",
            "--module nowhere.at_all:make cannot be imported: its code needs the Python package nowhere",
        ),
        ("NAME:other", "--module NAME:other: NAME has no other; name a function that is there."),
        ("no/such/file.py:make", "--module no/such/file.py:make: there is no file no/such/file.py; give a path from"),
        ("NAME:breaks", "--module NAME:breaks makes no module: breaks (NAME.py, line "),
        ("NAME:number", "--module NAME:number is no function of one path; write one that takes SOURCE and gives"),
        ("NAME:nothing", "--module NAME:nothing is no function of one path; write one that takes SOURCE and gives"),
        ("NAME:text", "--module NAME:text gives str, not a torch.nn.Module; return a module."),
    ],
)
def test_a_factory_that_is_none_is_refused(function: str, sentence: str, tmp_path: Path, package: Write) -> None:
    name = package(
        "number = 3\ndef nothing():\n    return nn.Linear(1, 1)\ndef text(path):\n    return 'text'\n"
        "def breaks(path):\n    raise RuntimeError('no weights here')\n"
    )
    given = function.replace("NAME", name)
    message = refusal(ModuleSource(tmp_path, factory=given)).replace(repr(given), given)
    assert message.startswith(sentence.replace("NAME", name))


def test_a_factory_whose_module_takes_no_tokens_needs_examples(tmp_path: Path, package: Write) -> None:
    name = package("def make(path):\n    return nn.Linear(8, 4)\n")
    assert refusal(ModuleSource(tmp_path, factory=f"{name}:make")) == (
        "Linear takes no input_ids, so truecast has no example; give example inputs."
    )


def recogniser(folder: Path, **extractor: object) -> Path:
    """A tiny model of speech with its feature extractor."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    convolutions = {
        "conv_dim": (16, 16),
        "conv_stride": (20, 16),
        "conv_kernel": (20, 16),
        "num_feat_extract_layers": 2,
    }
    positions = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    config = Wav2Vec2Config(**sizes, **convolutions, **positions, feat_extract_norm="layer", vocab_size=32)
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(**extractor).save_pretrained(folder)
    return folder


def test_sound_has_a_mask_where_the_feature_extractor_makes_one(tmp_path: Path) -> None:
    for masked, names in ((True, ["input_values", "attention_mask"]), (False, ["input_values"])):
        made = recogniser(tmp_path / str(masked), return_attention_mask=masked)
        author, _ = open_author(ModuleSource(made))
        assert [spec.name for spec in author.inputs] == names
    nested = {"feature_extractor": {"return_attention_mask": True}}
    (made / "preprocessor_config.json").unlink()
    (made / "processor_config.json").write_text(json.dumps(nested))
    author, _ = open_author(ModuleSource(made))
    assert [spec.name for spec in author.inputs] == ["input_values", "attention_mask"]


def test_padded_sound_gives_the_authors_answer(tmp_path: Path) -> None:
    made = truecast.export(
        recogniser(tmp_path / "model", return_attention_mask=True), tmp_path / "out", precision="fp32"
    )
    assert made.manifest.certificate.status is Status.PROVEN
    numbers = np.random.default_rng(0)
    rows = [numbers.normal(size=size).astype(np.float32) for size in (9000, 5000, 3000)]
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(tmp_path / "model")
    feeds = extractor(rows, sampling_rate=16000, padding=True, return_tensors="pt")
    author = Wav2Vec2ForCTC.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        want = author(**feeds).logits.numpy()
    arrays = {name: tensor.numpy() for name, tensor in feeds.items()}
    got = made.run(arrays)["logits"]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    deaf = made.run(arrays | {"attention_mask": np.ones_like(arrays["attention_mask"])})["logits"]
    assert not np.allclose(deaf[1:], want[1:], rtol=1e-2, atol=1e-2)


def test_a_factory_may_be_named_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_head_in_a_file.py").write_text("from torch import nn\ndef make(path):\n    return nn.Linear(8, 4)\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    made, *_ = made_by(f"{tmp_path / 'a_head_in_a_file.py'}:make", None)
    assert isinstance(made, nn.Linear)


def saved(folder: Path, model: PreTrainedModel, extractor: SequenceFeatureExtractor | None = None) -> AuthorModule:
    """The author's module of a model that was saved, with its feature extractor."""
    model.save_pretrained(folder)
    if extractor is not None:
        extractor.save_pretrained(folder)
    return open_author(ModuleSource(folder))[0]


SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2, "vocab_size": 100}
WHISPER = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 48, "d_model": 32, "vocab_size": 100}
WHISPER |= {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 48, "pad_token_id": 0}
WHISPER |= {"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}


def test_the_class_that_the_checkpoint_names_comes_before_the_tasks_own(tmp_path: Path) -> None:
    texts = CLIPTextConfig(vocab_size=100, **SMALL, projection_dim=24, eos_token_id=99, bos_token_id=1, pad_token_id=0)
    models = [T5EncoderModel(T5Config(**T5)), UMT5EncoderModel(UMT5Config(**T5)), CLIPTextModelWithProjection(texts)]
    for model in models:
        author = saved(tmp_path / type(model).__name__, model)
        assert type(author.module) is type(model)
        assert [spec.name for spec in author.inputs] == ["input_ids", "attention_mask"]
    assert author.axes["sequence_length"].high == 77
    assert open_author(ModuleSource(tmp_path / "T5EncoderModel"))[0].axes["sequence_length"].high is None


def test_positions_behind_a_row_for_padding_do_not_count(tmp_path: Path) -> None:
    config = RobertaConfig(vocab_size=100, **SMALL, max_position_embeddings=66, pad_token_id=1)
    assert saved(tmp_path / "roberta", RobertaModel(config)).axes["sequence_length"].high == 64


def test_inputs_of_sound_have_the_layout_of_the_feature_extractor(tmp_path: Path) -> None:
    whisper = saved(tmp_path / "w", WhisperForAudioClassification(WhisperConfig(**WHISPER)), WhisperFeatureExtractor())
    assert [(s.name, tuple(s.example.shape), set(s.axes)) for s in whisper.inputs] == [
        ("input_features", (3, 80, 3000), {0})
    ]
    config = Wav2Vec2BertConfig(**SMALL, vocab_size=32, feature_projection_input_dim=160)
    bert = saved(tmp_path / "b", Wav2Vec2BertForCTC(config), SeamlessM4TFeatureExtractor())
    assert [(s.name, tuple(s.example.shape), set(s.axes)) for s in bert.inputs] == [
        ("input_features", (3, 49, 160), {0, 1}),
        ("attention_mask", (3, 49), {0, 1}),
    ]
    assert bert.axes["num_frames"] == Axis("num_frames", 4)


def test_without_a_feature_extractor_the_layout_is_one_that_the_model_takes(tmp_path: Path) -> None:
    config = WhisperConfig(**WHISPER, max_source_positions=50)
    author = saved(tmp_path / "whisper", WhisperForAudioClassification(config))
    assert tuple(author.inputs[0].example.shape) == (3, 80, 100)
