"""Adapters of the real peft say what is personal, devices start from them, and what was learned opens in peft again."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from pfl_exporters.hugging_face import deployment
from pfl_mobile.bundle.peft import export_model
from pfl_mobile.errors import ConfigError, DataError, PflError, TensorMismatchError
from pfl_mobile.programs.deployment import Deployment
from tests.exporters.hugging_face import FAMILIES, family, net, saved

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
    "LoRA of Gemma": ("Gemma 2", lambda: lora("q_proj", "o_proj"), {"lora"}),
    "LoRA of T5": ("T5", lambda: lora("q", "v", task_type="SEQ_2_SEQ_LM"), {"lora"}),
    "a classifier's head": (
        "BERT",
        lambda: lora("query", "value", task_type="SEQ_CLS", modules_to_save=["pooler"]),
        {"lora", "head"},
    ),
    "tags": ("BERT for tokens", lambda: lora("query", task_type="TOKEN_CLS"), {"lora", "head"}),
    "heads whose names end alike": (
        "DistilBERT",
        lambda: lora("q_lin", "v_lin", task_type="SEQ_CLS"),
        {"lora", "head"},
    ),
    "a head of several layers": ("RoBERTa", lambda: lora("query", task_type="SEQ_CLS"), {"lora", "head"}),
    "biases": ("DistilBERT", lambda: lora("q_lin", bias="lora_only"), {"lora", "head"}),
    "all biases": ("ViT", lambda: lora("q_proj", bias="all"), {"lora", "head"}),
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


def test_settings_alone_say_what_is_personal(tmp_path: Path) -> None:
    lora("q_proj", "v_proj", rank_pattern={"v_proj": 3}).save_pretrained(tmp_path / "settings")
    told: list[str] = []
    folder = saved(tmp_path / "model", net("Llama"))
    made = deployment(
        folder, adapter=tmp_path / "settings", shape=FAMILIES["Llama"].shape, report=told.append
    )
    shapes = {name: list(value.shape) for name, value in made.model.values().items()}
    assert shapes["model.layers.1.self_attn.q_proj.lora_A"] == [2, 32]
    assert shapes["model.layers.1.self_attn.v_proj.lora_B"] == [16, 3]
    assert not any("start from the adapter" in line for line in told)
    with torch.no_grad():
        torch.testing.assert_close(*outputs(made, net("Llama")))  # nothing is trained yet


def test_an_adapter_brings_the_head_that_its_backbone_lacks(tmp_path: Path) -> None:
    theirs = adapted("BERT", lora("query", task_type="SEQ_CLS"), tmp_path / "adapter")
    encoder = net("BERT").bert
    folder = saved(tmp_path / "model", encoder, architectures=["BertForSequenceClassification"])
    made = deployment(folder, adapter=tmp_path / "adapter", shape=FAMILIES["BERT"].shape)
    torch.testing.assert_close(*outputs(made, theirs), rtol=1e-4, atol=1e-5)


def changed(folder: Path, **settings: Any) -> Path:
    """An adapter's folder with other settings."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


def of_llama(folder: Path, *targets: str, **more: Any) -> Path:
    """An adapter of a small Llama."""
    adapted("Llama", lora(*targets or ("q_proj",), **more), folder)
    return folder


def settings_only(folder: Path, **settings: Any) -> Path:
    """The settings of an adapter."""
    lora("q_proj").save_pretrained(folder)
    return changed(folder, **settings)


BAD: dict[str, tuple[str, Callable[[Path], Path], type[PflError], str, str]] = {
    "no adapter": (
        "Llama",
        lambda p: p,
        DataError,
        r"has no adapter_config\.json",
        "folder of a peft adapter",
    ),
    "another model's names": (
        "BERT",
        lambda p: changed(of_llama(p), base_model_name_or_path="somebody/llama"),
        TensorMismatchError,
        r"trained for somebody/llama, has tensors for 'model\.layers\.0\.self_attn\.q_proj' \(2 such .*, and Bert",
        "trained for this model",
    ),
    "another model's sizes": (
        "Qwen 2",
        of_llama,
        TensorMismatchError,
        r"q_proj\.lora_A' is \[2, 32\] in the adapter and \[2, 48\] in the model",
        "same backbone",
    ),
    "another method": (
        "Llama",
        lambda p: settings_only(p, peft_type="LOHA"),
        ConfigError,
        "'LOHA'",
        "merge_and_unload",
    ),
    "no layers": (
        "Llama",
        lambda p: settings_only(p, target_modules=None),
        ConfigError,
        "names no layers",
        "all-linear",
    ),
    "no such layers": (
        "Llama",
        lambda p: settings_only(p, target_modules=["query"]),
        ConfigError,
        "target_modules .* matches no layer of LlamaForCausalLM",
        "name layers of this model",
    ),
    "embeddings that are scaled": (
        "Gemma 2",
        lambda p: (adapted("Gemma 2", lora("embed_tokens"), p), p)[1],
        ConfigError,
        "'model.embed_tokens' scales its embeddings",
        "leave the layer out",
    ),
    "a prompt of a classifier": (
        "BERT",
        lambda p: settings_only(p, peft_type="PROMPT_TUNING", num_virtual_tokens=3, task_type="SEQ_CLS"),
        ConfigError,
        "a prompt for the task 'SEQ_CLS'",
        "give LoRA",
    ),
    "a prompt of an encoder and a decoder": (
        "T5",
        lambda p: settings_only(p, peft_type="PROMPT_TUNING", num_virtual_tokens=3, task_type="SEQ_2_SEQ_LM"),
        ConfigError,
        "a prompt for the task 'SEQ_2_SEQ_LM'",
        "give LoRA",
    ),
    "a prompt of no tokens": (
        "Llama",
        lambda p: settings_only(p, peft_type="PROMPT_TUNING", task_type="CAUSAL_LM"),
        DataError,
        "num_virtual_tokens .* is 0",
        "1 or more",
    ),
    "(IA)^3 without its sides": (
        "Llama",
        lambda p: settings_only(p, peft_type="IA3"),
        ConfigError,
        "feedforward_modules",
        "name them",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_an_adapter_that_cannot_be_used_is_named(what: str, tmp_path: Path) -> None:
    name, make, kind, says, mend = BAD[what]
    model = net(name)
    if what == "another model's sizes":
        model = type(model)(type(model.config)(**{**model.config.to_dict(), "hidden_size": 48}))
    (tmp_path / "adapter").mkdir()
    adapter = make(tmp_path / "adapter")
    with pytest.raises(kind, match=says) as caught:
        deployment(saved(tmp_path / "model", model), adapter=adapter, shape=FAMILIES[name].shape)
    assert mend in caught.value.mend
