"""Models of transformers are exported and trained as they are: on every engine with PFL_ALL_ENGINES=1, else some on
some."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from pfl_exporters.hugging_face import Shape, by_leaf, deployment
from pfl_exporters.verify import cases, check_engine, check_traced
from pfl_mobile import Head, LoRA
from pfl_mobile.errors import ConfigError, DataError, PflError, UnknownNameError
from pfl_mobile.programs.deployment import Deployment
from pfl_mobile.programs.tasks import ClassificationTask, TokenTask
from pfl_mobile.programs.trace import gradients, trace_programs, trained_names
from tests.exporters.conftest import opened
from tests.exporters.hugging_face import FAMILIES, family, saved

_ALL = bool(os.environ.get("PFL_ALL_ENGINES"))
#: The engines that each is run on in every run of the tests.
_SOME = {"DistilBERT": ["android", "onnx"], "GPT-2": ["onnx"], "wav2vec 2": ["onnx"]}
_STEPS = 20 if _ALL else 3


def trained(d: Deployment, run: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors after some steps of SGD on the example batch."""
    values = {name: value.clone() for name, value in d.model.values().items()}
    for _ in range(_STEPS):
        found = run(values)
        for name in trained_names(d.model):
            values[name] = values[name] - 0.05 * found[f"grad.{name}"] / found["weight_sum"]
    return values


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_every_gradient_equal_pytorch(name: str, tmp_path: Path) -> None:
    d = family(name, tmp_path / "model")
    programs = trace_programs(d.model, d.task, d.batch, d.inputs_of_predict())
    reference = cases(d.model, d.task, d.batch, d.inputs_of_predict(), rounds=2)
    assert check_traced(programs, reference)["grad_max_rel_err"] < 1e-4
    batch, names = dict(d.batch), trained_names(d.model)
    want = trained(d, lambda values: gradients(d.model, d.task, batch, values, names))
    for target in ["onnx", "android"] if _ALL else _SOME.get(name, []):
        with opened(target, programs, tmp_path) as session:
            assert check_engine(session, reference)["grad_max_rel_err"] < 1e-4

            def step(values: dict[str, Tensor]) -> dict[str, Tensor]:
                given = {name: value.numpy() for name, value in {**batch, **values}.items()}
                return {
                    name: torch.from_numpy(value) for name, value in session.run("gradients", given).items()
                }

            ended = trained(d, step)
        for name, value in want.items():
            moved = float((value - d.model.values()[name]).norm())
            assert float((ended[name] - value).norm()) <= 1e-3 * moved, name


def llama(folder: Path, **changes: Any) -> Path:
    """A small language model with its tokenizer."""
    torch.manual_seed(0)
    settings = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config = hf.LlamaConfig(
        **settings, num_attention_heads=4, max_position_embeddings=40, bos_token_id=0, eos_token_id=1
    )
    return saved(folder, hf.LlamaForCausalLM(config), **changes)


def bert(folder: Path) -> Path:
    """A small classifier of texts."""
    settings = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    torch.manual_seed(0)
    config = hf.BertConfig(**settings, num_attention_heads=4, num_labels=3)
    return saved(folder, hf.BertForSequenceClassification(config))


def test_a_language_model_is_read_with_its_tokenizer(tmp_path: Path) -> None:
    folder = llama(tmp_path / "small")
    made = deployment(folder, [LoRA(by_leaf(["q_proj", "v_proj"]), rank=2)], shape=Shape(2, 8))
    assert made.name == "small"
    assert next(iter(made.model.values())) == "model.layers.0.self_attn.q_proj.lora_A"
    assert made.encoder is not None
    assert made.encoder["subwords"] == {"pad": 1, "bos": 0, "eos": 1, "unk": None}  # those of its config
    assert made.task == TokenTask(300, specials=2)
    plain = hf.LlamaForCausalLM.from_pretrained(folder)
    tokens = made.batch["tokens"]
    torch.testing.assert_close(made.model(tokens), plain(tokens).logits)
    programs = trace_programs(made.model, made.task, made.batch, made.inputs_of_predict())
    check_traced(programs, cases(made.model, made.task, made.batch, made.inputs_of_predict(), rounds=1))


def test_classifiers_of_texts_and_pictures_are_read(tmp_path: Path) -> None:
    made = deployment(bert(tmp_path / "texts"), [Head(by_leaf(["classifier"]))], shape=Shape(3, 6))
    assert made.task == ClassificationTask(3, inputs=("input_ids", "attention_mask"))
    shapes = {name: list(value.shape) for name, value in made.batch.items()}
    assert shapes == {"input_ids": [3, 6], "attention_mask": [3, 6], "labels": [3], "weight": [3]}
    config = hf.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=16, patch_size=8
    )
    folder = saved(tmp_path / "pictures", hf.ViTForImageClassification(config))
    pictures = deployment(folder, [LoRA("all-linear", rank=2)], shape=Shape(2))
    assert list(pictures.batch["pixel_values"].shape) == [2, 3, 16, 16]


def test_new_layers_are_trained_or_refused(tmp_path: Path) -> None:
    settings = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    encoder = hf.BertModel(hf.BertConfig(**settings, num_attention_heads=4))
    folder = saved(tmp_path / "encoder", encoder, architectures=["BertForSequenceClassification"])
    with pytest.raises(ConfigError, match=r"no weights for classifier\.bias") as caught:
        deployment(folder, [LoRA("*.query", rank=2)])
    assert "--head classifier" in caught.value.mend
    made = deployment(folder, [LoRA("*.query", rank=2), Head("classifier")])
    assert "classifier.weight" in made.model.values()


def without(folder: Path, name: str) -> Path:
    """The folder with a file less."""
    (folder / name).unlink()
    return folder


def cut(folder: Path, name: str) -> Path:
    """The folder with a file that ends early."""
    (folder / name).write_bytes((folder / name).read_bytes()[:100])
    return folder


BAD: dict[str, tuple[Callable[[Path], Path], type[PflError], str]] = {
    "no folder": (lambda p: p / "none", UnknownNameError, "is no folder"),
    "no config": (lambda p: p, DataError, r"config\.json"),
    "code of its own": (
        lambda p: llama(p, auto_map={"AutoModelForCausalLM": "modeling.Mine"}),
        ConfigError,
        "code of its own",
    ),
    "quantized": (lambda p: llama(p, quantization_config={"bits": 4}), ConfigError, "quantized weights"),
    "no architecture": (lambda p: llama(p, architectures=[]), DataError, "names no architecture"),
    "an unknown one": (
        lambda p: llama(p, architectures=["MineForCausalLM"]),
        ConfigError,
        "MineForCausalLM is not in this version",
    ),
    "one without a task": (
        lambda p: llama(p, architectures=["LlamaForQuestionAnswering"]),
        ConfigError,
        "has no task here",
    ),
    "another tokenizer": (lambda p: llama(p, vocab_size=270), DataError, r"has \d+ ids, the model 270"),
    "no tokenizer": (lambda p: without(llama(p), "tokenizer.json"), DataError, r"no tokenizer\.json"),
    "a short tokenizer": (
        lambda p: cut(llama(p), "tokenizer.json"),
        DataError,
        r"cannot read .*tokenizer\.json",
    ),
    "no weights": (
        lambda p: without(llama(p), "model.safetensors"),
        DataError,
        "has no weights: there is no model",
    ),
    "short weights": (lambda p: cut(llama(p), "model.safetensors"), DataError, "cannot read the weights"),
    "long rows": (llama, ConfigError, "at most 40 tokens, not 64"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_folder_that_cannot_be_used_is_named(what: str, tmp_path: Path) -> None:
    make, kind, says = BAD[what]
    shape = Shape() if what == "long rows" else Shape(2, 8)
    with pytest.raises(kind, match=says) as caught:
        deployment(make(tmp_path), [LoRA("all-linear", rank=2)], shape=shape)
    assert caught.value.mend
