"""Small random models of the families of transformers, as their library makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from pfl_mobile import AdamW, ClassificationTask, Head, LoRA, Plan, TokenTask, TrainPhase, personalize
from pfl_mobile.modules.registry import ModuleConfig
from pfl_mobile.programs.deployment import Deployment

PLAN = Plan(phases=(TrainPhase(epochs=1, optimizer=AdamW(lr=1e-3)),))
_WORDS = 60
_SMALL: dict[str, Any] = {
    "vocab_size": _WORDS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_GROUPED: dict[str, Any] = {**_SMALL, "num_key_value_heads": 2, "max_position_embeddings": 32}
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


class Called(nn.Module):
    """A model of transformers whose call gives its logits."""

    def __init__(self, net: nn.Module, *names: str, **options: Any) -> None:
        super().__init__()
        self.net, self.names, self.options = net, names, options

    def forward(self, *inputs: Tensor) -> Tensor:
        out: Tensor = self.net(**dict(zip(self.names, inputs, strict=True)), **self.options).logits
        return out


class Translated(nn.Module):
    """An encoder and a decoder that read the same words."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = self.net(
            input_ids=tokens, attention_mask=mask, decoder_input_ids=tokens, use_cache=False
        ).logits
        return out


def _words() -> tuple[Tensor, Tensor]:
    """Rows [3, 7] that end early, and their masks."""
    ids = torch.randint(5, _WORDS, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(7) < torch.tensor([[7], [6], [5]])).to(torch.int64)
    return ids * mask, mask


def _classes(net: nn.Module, modules: list[ModuleConfig], **inputs: Tensor) -> Deployment:
    count = len(next(iter(inputs.values())))
    batch = {**inputs, "labels": torch.arange(count) % 2, "weight": torch.ones(count)}
    model = personalize(Called(net, *inputs).eval(), modules)
    return Deployment("classes", model, ClassificationTask(2, inputs=tuple(inputs)), batch, PLAN)


def _sentences(net: nn.Module, *modules: ModuleConfig) -> Deployment:
    ids, mask = _words()
    return _classes(net, list(modules), input_ids=ids, attention_mask=mask)


def _tokens(net: nn.Module, *modules: ModuleConfig) -> Deployment:
    ids, mask = _words()
    batch = {"tokens": ids, "mask": mask, "labels": ids.roll(-1, 1), "weight": mask.float()}
    short = {"tokens": ids[:1], "mask": mask[:1], "position": torch.tensor([3])}
    task = TokenTask(_WORDS, inputs=("tokens", "mask"))
    return Deployment(
        "tokens", personalize(net.eval(), list(modules)), task, batch, PLAN, predict_batch=short
    )


def _language(net: nn.Module, *modules: ModuleConfig) -> Deployment:
    return _tokens(Called(net, "input_ids", "attention_mask", use_cache=False), *modules)


def _pictures(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


_Q = LoRA("*.query", rank=2)
_QV = LoRA("*.[qv]_proj", rank=2)
FAMILIES: dict[str, Callable[[], Deployment]] = {
    "DistilBERT": lambda: _sentences(
        hf.DistilBertForSequenceClassification(
            hf.DistilBertConfig(vocab_size=_WORDS, dim=32, hidden_dim=64, n_layers=2, n_heads=4)
        ),
        LoRA("*.q_lin", rank=2),
        Head("net.classifier"),
    ),
    "BERT": lambda: _sentences(hf.BertForSequenceClassification(hf.BertConfig(**_SMALL)), _Q),
    "RoBERTa": lambda: _sentences(hf.RobertaForSequenceClassification(hf.RobertaConfig(**_SMALL)), _Q),
    "ViT": lambda: _classes(
        hf.ViTForImageClassification(
            hf.ViTConfig(
                **{k: v for k, v in _SMALL.items() if k != "vocab_size"}, image_size=16, patch_size=8
            )
        ),
        [LoRA("all-linear", rank=2)],
        pixel_values=_pictures(3, 3, 16, 16),
    ),
    "GPT-2": lambda: _language(
        hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=_WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=32)),
        LoRA("*.c_attn", rank=2),
    ),
    "Llama": lambda: _language(hf.LlamaForCausalLM(hf.LlamaConfig(**_GROUPED)), _QV),
    "Gemma 2": lambda: _language(
        hf.Gemma2ForCausalLM(hf.Gemma2Config(**_GROUPED, head_dim=8, sliding_window=4)), _QV
    ),
    "Qwen 2": lambda: _language(hf.Qwen2ForCausalLM(hf.Qwen2Config(**_GROUPED)), _QV),
    "T5": lambda: _tokens(
        Translated(
            hf.T5ForConditionalGeneration(
                hf.T5Config(
                    vocab_size=_WORDS,
                    d_model=32,
                    d_kv=8,
                    d_ff=64,
                    num_layers=2,
                    num_heads=4,
                    decoder_start_token_id=0,
                )
            )
        ),
        LoRA("*.[qv]", rank=2),
    ),
    "Whisper": lambda: _classes(
        hf.WhisperForAudioClassification(
            hf.WhisperConfig(
                d_model=32,
                encoder_layers=2,
                encoder_attention_heads=4,
                encoder_ffn_dim=64,
                decoder_layers=1,
                decoder_attention_heads=4,
                decoder_ffn_dim=64,
                num_mel_bins=8,
                max_source_positions=10,
                vocab_size=_WORDS,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                classifier_proj_size=16,
            )
        ),
        [LoRA("*.q_proj", rank=2)],
        input_features=_pictures(3, 8, 20),
    ),
    "wav2vec 2": lambda: _classes(
        hf.Wav2Vec2ForSequenceClassification(hf.Wav2Vec2Config(**_SPEECH)),
        [LoRA("*.q_proj", rank=2)],
        input_values=_pictures(3, 200),
    ),
    "ConvNeXt": lambda: _classes(
        hf.ConvNextForImageClassification(
            hf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=32)
        ),
        [LoRA("*.pwconv1", rank=2)],
        pixel_values=_pictures(3, 3, 32, 32),
    ),
    "MobileNetV2": lambda: _classes(
        hf.MobileNetV2ForImageClassification(hf.MobileNetV2Config(depth_multiplier=0.35, image_size=32)),
        [Head("net.classifier")],
        pixel_values=_pictures(3, 3, 32, 32),
    ),
    "Mamba": lambda: _tokens(
        Called(
            hf.MambaForCausalLM(
                hf.MambaConfig(vocab_size=_WORDS, hidden_size=32, state_size=4, num_hidden_layers=2)
            ),
            "input_ids",
            "attention_mask",
            use_cache=False,
        ),
        LoRA("*.in_proj", rank=2),
    ),
}


def family(name: str) -> Deployment:
    """A deployment with the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return FAMILIES[name]()
