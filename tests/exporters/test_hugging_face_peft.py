"""Adapters of the real peft say what is personal, devices start from them, and what was learned opens in peft again."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from pfl_mobile.bundle.peft import export_model
from pfl_mobile.programs.deployment import Deployment
from tests.exporters.hugging_face import family, net

pytestmark = pytest.mark.slow  # imports peft


def adapted(name: str, config: peft.PeftConfig, folder: Path) -> Any:
    """peft's model with random values, saved as an adapter."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(net(name), config).eval()
        draw = torch.Generator().manual_seed(1)
        for value in theirs.parameters():
            if value.requires_grad:
                value.add_(0.2 * torch.randn(value.shape, generator=draw))
        theirs.save_pretrained(folder)
    return theirs


def opened(name: str, folder: Path) -> Any:
    """peft's model with an adapter that was written here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(net(name), str(folder)).eval()


def outputs(made: Deployment, theirs: Any) -> tuple[Tensor, Tensor]:
    """Ours and peft's logits for the example batch, of as many places."""
    inputs = [made.batch[name] for name in made.task.inputs]
    names = ["input_ids"] if made.task.inputs == ("tokens",) else made.task.inputs
    with torch.no_grad():
        ours = made.model(*inputs)
        logits = theirs(**dict(zip(names, inputs, strict=True))).logits
    return ours, logits[:, -ours.shape[1] :] if ours.dim() == 3 else logits


def lora(*targets: str, **more: Any) -> peft.LoraConfig:
    return peft.LoraConfig(r=2, lora_alpha=3, target_modules=list(targets), **more)


ADAPTERS: dict[str, tuple[str, Callable[[], peft.PeftConfig], set[str]]] = {
    "LoRA of Llama": ("Llama", lambda: lora("q_proj", "v_proj", task_type="CAUSAL_LM"), {"lora"}),
    "all-linear of Qwen": (
        "Qwen 2",
        lambda: peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
        {"lora"},
    ),
    "patterns": (
        "Llama",
        lambda: lora(
            "q_proj",
            "v_proj",
            "down_proj",
            use_rslora=True,
            rank_pattern={"v_proj": 3},
            alpha_pattern={"down_proj": 5, "layers.1.self_attn.q_proj": 7},
            exclude_modules=["layers.0.mlp.down_proj"],
        ),
        {"lora", "lora_2", "lora_3", "lora_4"},
    ),
    "DoRA of GPT-2": ("GPT-2", lambda: lora("c_attn", "wte", use_dora=True, fan_in_fan_out=True), {"lora"}),
    "LoRA of Gemma": ("Gemma 2", lambda: lora("q_proj", "embed_tokens"), {"lora"}),
    "LoRA of T5": ("T5", lambda: lora("q", "v", task_type="SEQ_2_SEQ_LM"), {"lora"}),
    "a classifier's head": (
        "BERT",
        lambda: lora("query", "value", task_type="SEQ_CLS", modules_to_save=["pooler"]),
        {"lora", "head"},
    ),
    "tags": ("BERT for tokens", lambda: lora("query", task_type="TOKEN_CLS"), {"lora", "head"}),
    "a head of several layers": ("RoBERTa", lambda: lora("query", task_type="SEQ_CLS"), {"lora", "head"}),
    "biases": ("DistilBERT", lambda: lora("q_lin", bias="lora_only"), {"lora", "head"}),
    "all biases": (
        "ViT",
        lambda: lora("query", bias="all", modules_to_save=["classifier"]),
        {"lora", "head", "head_2"},
    ),
    "LoRA of wav2vec 2": ("wav2vec 2", lambda: lora("q_proj", "projector"), {"lora"}),
    "LoRA of Whisper": ("Whisper that writes", lambda: lora("q_proj", "v_proj"), {"lora"}),
    "convolutions": ("ConvNeXt", lambda: lora("pwconv1", "patch_embeddings"), {"lora"}),
    "(IA)^3 of Llama": ("Llama", lambda: peft.IA3Config(task_type="CAUSAL_LM"), {"gate", "gate_2"}),
    "(IA)^3 of GPT-2": (
        "GPT-2",
        lambda: peft.IA3Config(
            target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True
        ),
        {"gate", "gate_2"},
    ),
    "(IA)^3 of T5": ("T5", lambda: peft.IA3Config(task_type="SEQ_2_SEQ_LM"), {"gate", "gate_2"}),
    "(IA)^3 of BERT": ("BERT", lambda: peft.IA3Config(task_type="SEQ_CLS"), {"gate", "gate_2", "head"}),
    "a prompt of Llama": (
        "Llama",
        lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        {"prompt"},
    ),
    "a prompt of Qwen": (
        "Qwen 2",
        lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        {"prompt"},
    ),
    "a prompt of Gemma": (
        "Gemma 2",
        lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        {"prompt"},
    ),
}
#: Of these an adapter cannot be written: trained biases, which peft knows and no file of ours holds.
_ONLY_READ = {"biases", "all biases"}


@pytest.mark.parametrize("what", ADAPTERS)
def test_a_device_starts_where_peft_ended_and_peft_opens_what_it_learned(what: str, tmp_path: Path) -> None:
    name, config, modules = ADAPTERS[what]
    theirs = adapted(name, config(), tmp_path / "adapter")
    made = family(name, tmp_path / "model", adapter=tmp_path / "adapter")
    assert set(made.model.configs) == modules
    ours, wanted = outputs(made, theirs)
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        before = outputs(made, theirs)[0]
    made.model.load_values({name: 1.1 * value + 0.05 for name, value in made.model.values().items()})
    if what in _ONLY_READ:
        return
    export_model(made.model, tmp_path / "learned")
    ours, wanted = outputs(made, opened(name, tmp_path / "learned"))
    assert not torch.allclose(ours, before, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
