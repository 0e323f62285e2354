"""Models without a cache: encoders of text, pictures and sound, each with a head or without.

Every case differs from the others in something that an exporter can get wrong: where positions come from, how padding
is hidden, windows, shared layers, convolutions, batch norms, weight norms, and pooling inside the head.
"""

from __future__ import annotations

from typing import Any

from tests.conformance.shapes import EPSILON, WINDOW
from tests.tiny import END_TOKEN_ID, Case

TEXT: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 80,
    "layer_norm_eps": EPSILON,
    "pad_token_id": 0,
}
ROBERTA = TEXT | {"type_vocab_size": 1, "pad_token_id": 1}
"""Positions count from behind the padding's number, and only what is no padding."""
PICTURE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "layer_norm_eps": EPSILON,
}
SOUND: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "layer_norm_eps": EPSILON,
    "conv_dim": (32, 32, 32),
    "conv_stride": (5, 4, 4),
    "conv_kernel": (10, 8, 4),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 32,
}
SPECTRUM: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_length": 64,
    "num_mel_bins": 16,
}
GROUPED = TEXT | {
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": EPSILON,
    "bos_token_id": END_TOKEN_ID,
    "eos_token_id": END_TOKEN_ID,
}
MODERN = TEXT | {
    "num_hidden_layers": 3,
    "norm_eps": EPSILON,
    "local_attention": WINDOW,
    "global_attn_every_n_layers": 2,
    **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), END_TOKEN_ID),
}


def encoder(name: str, kind: str, model: str, settings: dict[str, Any], **more: Any) -> Case:
    """A case of the configuration `kind`Config and of the class `kind` with the ending `model`."""

    return Case(name, f"{kind}Config", settings | more, model_class=f"{kind}{model}")


ENCODERS: list[Case] = [
    encoder("bert", "Bert", "Model", TEXT),
    encoder("bert_sequence", "Bert", "ForSequenceClassification", TEXT, num_labels=3),
    encoder("bert_token", "Bert", "ForTokenClassification", TEXT, num_labels=5),
    encoder("bert_question", "Bert", "ForQuestionAnswering", TEXT),
    encoder("bert_masked", "Bert", "ForMaskedLM", TEXT),
    encoder("roberta_sequence", "Roberta", "ForSequenceClassification", ROBERTA),
    encoder("xlm_roberta", "XLMRoberta", "Model", ROBERTA),
    encoder(
        "distilbert_sequence",
        "DistilBert",
        "ForSequenceClassification",
        {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96, "vocab_size": 320, "max_position_embeddings": 80},
    ),
    encoder("electra_token", "Electra", "ForTokenClassification", TEXT, embedding_size=32),
    encoder("albert", "Albert", "Model", TEXT, embedding_size=32),
    encoder("mpnet", "MPNet", "Model", TEXT | {"pad_token_id": 1}),
    encoder(
        "deberta_v2_sequence",
        "DebertaV2",
        "ForSequenceClassification",
        TEXT,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=16,
    ),
    encoder("modernbert_sequence", "ModernBert", "ForSequenceClassification", MODERN),
    encoder("modernbert_masked", "ModernBert", "ForMaskedLM", MODERN),
    encoder("qwen3_rerank", "Qwen3", "ForSequenceClassification", GROUPED, num_labels=1),
    encoder(
        "gemma3_embedding", "Gemma3Text", "Model", GROUPED, sliding_window=WINDOW, use_bidirectional_attention=True
    ),
    encoder("vit_image", "ViT", "ForImageClassification", PICTURE),
    encoder("vit", "ViT", "Model", PICTURE),
    encoder("dinov2", "Dinov2", "Model", PICTURE),
    encoder("deit_image", "DeiT", "ForImageClassification", PICTURE),
    encoder("siglip_vision", "SiglipVision", "Model", PICTURE),
    encoder("clip_vision", "CLIPVision", "Model", PICTURE),
    encoder(
        "convnext_image",
        "ConvNext",
        "ForImageClassification",
        {"image_size": 32, "hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2},
    ),
    encoder(
        "resnet_image",
        "ResNet",
        "ForImageClassification",
        {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"},
    ),
    encoder(
        "swin_image",
        "Swin",
        "ForImageClassification",
        {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
    ),
    encoder("wav2vec2_ctc", "Wav2Vec2", "ForCTC", SOUND),
    encoder("hubert_audio", "Hubert", "ForSequenceClassification", SOUND),
    encoder("ast_audio", "AST", "ForAudioClassification", SPECTRUM),
]
BY_NAME: dict[str, Case] = {case.name: case for case in ENCODERS}
REPRESENTATIVE = (
    *("bert_sequence", "roberta_sequence", "distilbert_sequence", "deberta_v2_sequence", "modernbert_sequence"),
    *("qwen3_rerank", "vit_image", "convnext_image", "wav2vec2_ctc"),
)
"""One of each kind; the others run in `make nightly`, and in the report."""
