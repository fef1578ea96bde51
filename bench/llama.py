"""Models of Llama's kind in any size, with random weights: what ``scaling.py`` and ``peers.py`` measure."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM


@dataclass(frozen=True)
class Size:
    """Of a model and its step; ``biased`` is 1 where q, k and v have a bias, as in Qwen2, ``batch`` its examples."""

    layers: int = 8
    width: int = 256
    inner: int = 704
    heads: int = 4
    key_heads: int = 2
    words: int = 8192
    length: int = 64
    biased: int = 0
    batch: int = 1


SMOLLM2_135M = Size(layers=30, width=576, inner=1536, heads=9, key_heads=3, words=49152)


#: Shapes of known models; their weights here are random.
SHAPES = {
    "smollm2-135m": replace(SMOLLM2_135M, length=256),
    "qwen2.5-0.5b": Size(24, 896, 4864, 14, 2, 151_936, 256, biased=1),
}


def config(size: Size) -> LlamaConfig | Qwen2Config:
    """Settings of transformers; the output is the table of the embedding."""
    from transformers import LlamaConfig, Qwen2Config

    return (Qwen2Config if size.biased else LlamaConfig)(
        vocab_size=size.words,
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )


def write_folder(model: LlamaForCausalLM | Qwen2ForCausalLM, folder: Path) -> None:
    """Write a model as transformers does, with a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    special = ["<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
