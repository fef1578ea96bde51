"""Small random models of the families of transformers, in folders as their library saves them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from pfl_exporters.hugging_face import Shape, by_leaf, deployment
from pfl_mobile import Head, LoRA
from pfl_mobile.modules.registry import ModuleConfig
from pfl_mobile.programs.deployment import Deployment

WORDS = 300
_SMALL: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_IDS: dict[str, Any] = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1}
_ENCODER: dict[str, Any] = {**_SMALL, "max_position_embeddings": 32}
_DECODER: dict[str, Any] = {**_ENCODER, **_IDS, "num_key_value_heads": 2}
_SPEECH: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (16, 16),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 16,
}
_WHISPER: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_layers": 1,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "num_mel_bins": 8,
    "max_source_positions": 10,
    "max_target_positions": 12,
    "vocab_size": WORDS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "classifier_proj_size": 16,
}
_VIT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
_T5: dict[str, Any] = {
    "vocab_size": WORDS, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Tiny:
    """A small model and what of it is personal.

    Attributes:
        make: with random weights.
        targets: ends of the names of the layers that get LoRA of rank 2.
        heads: of those that are trained as a whole.
        shape: batch and lengths.
    """

    make: Callable[[], Any]
    targets: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    shape: Shape = field(default_factory=lambda: Shape(3, 7))

    @property
    def modules(self) -> list[ModuleConfig]:
        found: list[ModuleConfig] = [LoRA(by_leaf(self.targets), rank=2)] if self.targets else []
        return [*found, *([Head(by_leaf(self.heads))] if self.heads else [])]


FAMILIES: dict[str, Tiny] = {
    "DistilBERT": Tiny(
        lambda: hf.DistilBertForSequenceClassification(
            hf.DistilBertConfig(vocab_size=WORDS, dim=32, hidden_dim=64, n_layers=2, n_heads=4)
        ),
        ("q_lin",),
        ("classifier",),
    ),
    "BERT": Tiny(lambda: hf.BertForSequenceClassification(hf.BertConfig(**_ENCODER)), ("query",)),
    "BERT for tokens": Tiny(
        lambda: hf.BertForTokenClassification(hf.BertConfig(**_ENCODER, num_labels=5)), ("query", "value")
    ),
    "RoBERTa": Tiny(
        lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**_ENCODER, pad_token_id=1)),
        ("query",),
        ("classifier",),
    ),
    "ViT": Tiny(lambda: hf.ViTForImageClassification(hf.ViTConfig(**_VIT)), ("all-linear",)),
    "GPT-2": Tiny(
        lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(vocab_size=WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=32, **_IDS)
        ),
        ("c_attn",),
    ),
    "Llama": Tiny(lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_DECODER)), ("q_proj", "v_proj")),
    "Llama for classes": Tiny(
        lambda: hf.LlamaForSequenceClassification(hf.LlamaConfig(**_DECODER)), ("q_proj",), ("score",)
    ),
    "Gemma 2": Tiny(
        lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**_DECODER, head_dim=8, sliding_window=4)),
        ("q_proj", "v_proj"),
    ),
    "Qwen 2": Tiny(lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**_DECODER)), ("q_proj", "v_proj")),
    "Mixtral": Tiny(
        lambda: hf.MixtralForCausalLM(
            hf.MixtralConfig(**_DECODER, num_local_experts=4, num_experts_per_tok=2)
        ),
        ("q_proj", "v_proj"),
    ),
    "gpt-oss": Tiny(  # experts with biases, whose weights are [in, out]
        lambda: hf.GptOssForCausalLM(
            hf.GptOssConfig(
                **_DECODER, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=4
            )
        ),
        ("q_proj", "v_proj"),
    ),
    "Mamba": Tiny(
        lambda: hf.MambaForCausalLM(
            hf.MambaConfig(vocab_size=WORDS, hidden_size=32, state_size=4, num_hidden_layers=2, **_IDS)
        ),
        ("in_proj",),
    ),
    "T5": Tiny(lambda: hf.T5ForConditionalGeneration(hf.T5Config(**_T5)), ("q", "v"), shape=Shape(3, 7, 5)),
    "Whisper": Tiny(lambda: hf.WhisperForAudioClassification(hf.WhisperConfig(**_WHISPER)), ("q_proj",)),
    "Whisper that writes": Tiny(
        lambda: hf.WhisperForConditionalGeneration(hf.WhisperConfig(**_WHISPER)),
        ("q_proj",),
        shape=Shape(3, target=6),
    ),
    "wav2vec 2": Tiny(
        lambda: hf.Wav2Vec2ForSequenceClassification(hf.Wav2Vec2Config(**_SPEECH)),
        ("q_proj",),
        shape=Shape(3, 200),
    ),
    "wav2vec 2 that writes": Tiny(
        lambda: hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(**_SPEECH, vocab_size=12, pad_token_id=0)),
        ("q_proj",),
        shape=Shape(3, 120, 3),
    ),
    "ConvNeXt": Tiny(
        lambda: hf.ConvNextForImageClassification(
            hf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=32)
        ),
        ("pwconv1",),
    ),
    "MobileNetV2": Tiny(
        lambda: hf.MobileNetV2ForImageClassification(
            hf.MobileNetV2Config(depth_multiplier=0.35, image_size=32)
        ),
        heads=("classifier",),
    ),
}


def net(name: str) -> Any:
    """A model of a family, with the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FAMILIES[name].make().eval()


def saved(folder: Path, model: Any, **changes: Any) -> Path:
    """A model's folder, with changes of its config, and a tokenizer where it learns texts."""
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    if type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        words = Tokenizer(BPE())
        words.pre_tokenizer = ByteLevel()
        trainer = BpeTrainer(
            vocab_size=280, special_tokens=["<s>", "</s>"], initial_alphabet=ByteLevel.alphabet()
        )
        words.train_from_iterator(["see you at the gym", "see you later"], trainer)
        words.save(str(folder / "tokenizer.json"))
        told = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
        (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder


def family(name: str, folder: Path, **options: Any) -> Deployment:
    """A family's deployment by its folder; options in place of its own modules."""
    tiny = FAMILIES[name]
    given = options or {"modules": tiny.modules}
    return deployment(saved(folder, net(name)), **given, shape=tiny.shape)
