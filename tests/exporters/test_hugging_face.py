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
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from typing_extensions import override

from pfl_exporters.families import _never_suggested
from pfl_exporters.hugging_face import Shape, by_leaf, deployment
from pfl_exporters.verify import cases, check_engine, check_traced
from pfl_mobile import Head, LoRA
from pfl_mobile.errors import ConfigError, DataError, PflError, UnknownNameError
from pfl_mobile.programs.deployment import Deployment
from pfl_mobile.programs.tasks import ClassificationTask, RegressionTask, TokenTask
from pfl_mobile.programs.trace import gradients, trace_programs, trained_names
from pfl_mobile.text.specials import SpecialIds
from pfl_mobile.text.subwords import SubwordTokenizer
from tests.exporters.conftest import opened
from tests.exporters.hugging_face import FAMILIES, family, net, saved

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
    for target in ["onnx", "android", "ios"] if _ALL else _SOME.get(name, []):
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
    assert made.task == TokenTask(300, specials=2, never=((276, 300),))  # as many as it has subwords
    plain = hf.LlamaForCausalLM.from_pretrained(folder)
    tokens = made.batch["tokens"]
    torch.testing.assert_close(made.model(tokens), plain(tokens).logits)
    programs = trace_programs(made.model, made.task, made.batch, made.inputs_of_predict())
    check_traced(programs, cases(made.model, made.task, made.batch, made.inputs_of_predict(), rounds=1))


@given(st.sets(st.integers(0, 11)))
def test_special_tokens_and_ids_without_one_are_no_suggestions(special: set[int]) -> None:
    names = [f"[{i}]" if i in special else chr(97 + i) for i in range(12)]
    words = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, "[?]"))
    words.add_special_tokens([name for name in names if name.startswith("[")])
    tokenizer = SubwordTokenizer(words.to_str(), SpecialIds(*[min(special, default=0)] * 3))
    leading, ranges = _never_suggested(tokenizer, 15)
    found = {i for first, behind in ((0, leading), *ranges) for i in range(first, behind)}
    assert found == special | {min(special, default=0), 12, 13, 14}
    assert all(first > leading for first, _ in ranges)


def test_a_model_of_the_local_cache_is_read_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--somebody--small" / "refs").mkdir(parents=True)
    (tmp_path / "models--somebody--small" / "refs" / "main").write_text("c0ffee")
    llama(tmp_path / "models--somebody--small" / "snapshots" / "c0ffee")
    assert deployment("somebody/small", [LoRA("*.q_proj", rank=2)], shape=Shape(2, 8)).name == "small"
    with pytest.raises(
        UnknownNameError, match="somebody/large is no folder, and no model of that name"
    ) as caught:
        deployment("somebody/large", [LoRA("*.q_proj", rank=2)], shape=Shape(2, 8))
    assert "hf download" in caught.value.mend


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


def sharded(folder: Path) -> Path:
    """The weights in several files."""
    model = net("Llama")
    without(saved(folder, model), "model.safetensors")
    model.save_pretrained(folder, max_shard_size="40KB")
    return folder


def pickled(folder: Path, weights: Any) -> Path:
    """The weights as PyTorch wrote them before there were safetensors."""
    without(saved(folder, net("Llama")), "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


class Runs:
    """What runs a command where it is unpickled."""

    @override
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return Path.touch, (Path("was-run"),)


def of_dtype(folder: Path, dtype: torch.dtype) -> Path:
    """The weights in another precision."""
    return saved(folder, net("Llama").to(dtype))


_BERT: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
}  # fmt: skip
BAD: dict[str, tuple[Callable[[Path], Path], type[PflError], str, str]] = {
    "no folder": (lambda p: p / "none", UnknownNameError, "is no folder", "hf download"),
    "a file": (lambda p: llama(p) / "config.json", UnknownNameError, "is a file", "give the folder"),
    "no config": (lambda p: p, DataError, r"config\.json", "whole model"),
    "an adapter": (
        lambda p: (p, (p / "adapter_config.json").write_text("{}"))[0],
        DataError,
        "is an adapter of peft and no model",
        "--adapter",
    ),
    "code of its own": (
        lambda p: llama(p, auto_map={"AutoModelForCausalLM": "modeling.Mine"}),
        ConfigError,
        "code of its own",
        "or take auto_map out of its config.json",
    ),
    "quantized": (
        lambda p: llama(p, quantization_config={"bits": 4}),
        ConfigError,
        "quantized weights",
        "dequantize",
    ),
    "of 8 bits": (
        lambda p: of_dtype(p, torch.float8_e4m3fn),
        ConfigError,
        "lm_head.weight of .* is in F8_E4M3",
        "dequantize",
    ),
    "no architecture": (lambda p: llama(p, architectures=[]), DataError, "names no architecture", "save"),
    "an unknown one": (
        lambda p: llama(p, architectures=["MineForCausalLM"]),
        ConfigError,
        "MineForCausalLM is not in this version",
        "a function that returns a Deployment",
    ),
    "one without a task": (
        lambda p: llama(p, architectures=["LlamaForQuestionAnswering"]),
        ConfigError,
        "has no task here",
        "ForCausalLM, LMHeadModel, ForSequenceClassification, ForTokenClassification",
    ),
    "another type": (
        lambda p: llama(p, model_type="gpt2"),
        DataError,
        "model_type 'gpt2', which is not that of LlamaForCausalLM",
        "whole model",
    ),
    "an unknown type": (
        lambda p: llama(p, model_type="mine"),
        DataError,
        "does not take the config.json of .*`mine`",
        "whole model",
    ),
    "a wrong setting": (
        lambda p: llama(p, hidden_size="large"),
        DataError,
        "does not take the config.json of .*hidden_size",
        "whole model",
    ),
    "another tokenizer": (
        lambda p: llama(p, vocab_size=270),
        DataError,
        r"has \d+ ids, the model 270",
        "the tokenizer that the model was trained with",
    ),
    "no tokenizer": (
        lambda p: without(llama(p), "tokenizer.json"),
        DataError,
        r"no tokenizer\.json",
        "AutoTokenizer",
    ),
    "no end of a text": (
        lambda p: without(llama(p, bos_token_id=None, eos_token_id=None), "tokenizer_config.json"),
        DataError,
        "does not say which token ends a text",
        "set eos_token_id",
    ),
    "a short tokenizer": (
        lambda p: cut(llama(p), "tokenizer.json"),
        DataError,
        r"cannot read .*tokenizer\.json",
        "whole model",
    ),
    "no weights": (
        lambda p: without(llama(p), "model.safetensors"),
        DataError,
        "has no weights: there is no model",
        "save the model",
    ),
    "short weights": (
        lambda p: cut(llama(p), "model.safetensors"),
        DataError,
        "cannot read the weights",
        "again",
    ),
    "a shard less": (
        lambda p: without(sharded(p), "model-00002-of-00004.safetensors"),
        DataError,
        "lacks 1 of 4 files of weights: model-00002-of-00004",
        "download the model whole",
    ),
    "a list of no shards": (
        lambda p: (p, (sharded(p) / "model.safetensors.index.json").write_text('{"weight_map": 3}'))[0],
        DataError,
        "lists no files of weights",
        "whole model",
    ),
    "pickled code": (
        lambda p: pickled(p, {"lm_head.weight": Runs()}),
        DataError,
        "cannot read the weights of .*Weights only load failed",
        "safetensors",
    ),
    "other sizes": (
        lambda p: llama(p, intermediate_size=96),
        DataError,
        r"down_proj.weight of .* is \[32, 64\] in its weights and \[32, 96\] by its config.json",
        "config.json that was saved with the weights",
    ),
    "layers that nobody asks for": (
        lambda p: saved(p, net("Llama"), num_hidden_layers=1),
        DataError,
        "have model.layers.1, its config.json has only 1 of model.layers",
        "config.json that was saved with the weights",
    ),
    "layers that are not there": (
        lambda p: llama(p, num_hidden_layers=2),
        ConfigError,
        "has no weights for model.layers.1.* and more: they would be random",
        "config.json that was saved with it",
    ),
    "a model that sees what is next": (
        lambda p: saved(p, hf.BertLMHeadModel(hf.BertConfig(**_BERT | {"vocab_size": 300}, eos_token_id=1))),
        ConfigError,
        "sees the tokens behind each place",
        "is_decoder",
    ),
    "long rows": (
        lambda p: llama(p, max_position_embeddings=6),
        ConfigError,
        "at most 6 tokens, not 8",
        "--length 6",
    ),
    "positions behind the padding": (
        lambda p: saved(
            p,
            hf.RobertaForSequenceClassification(
                hf.RobertaConfig(**_BERT, max_position_embeddings=9, pad_token_id=1)
            ),
        ),
        ConfigError,
        "at most 7 tokens, not 8",
        "--length 7",
    ),
    "no padding": (
        lambda p: saved(p, hf.LlamaForSequenceClassification(hf.LlamaConfig(**_BERT))),
        ConfigError,
        "which token fills rows",
        "set pad_token_id",
    ),
    "pictures of any size": (
        lambda p: saved(
            p,
            hf.ResNetForImageClassification(hf.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])),
        ),
        ConfigError,
        "pictures of any size",
        "image_size",
    ),
    "a text that cannot be said": (
        lambda p: saved(p, net("wav2vec 2 that writes")),
        ConfigError,
        "hears 3 frames in 40 samples, .* each text of 8 tokens",
        "--target-length 2 or less",
    ),
    "short sounds": (lambda p: saved(p, net("wav2vec 2")), ConfigError, "a frame has 20", "--length 20"),
    "pictures and texts": (
        lambda p: llama(p, architectures=["LlavaForConditionalGeneration"], model_type="llava"),
        ConfigError,
        "no encoder with a decoder",
        "a function that returns a Deployment",
    ),
    "a large rank": (llama, ConfigError, "rank 33 of LoRA is larger than layer .*at most 32", "--head"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_folder_that_cannot_be_used_is_named(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, kind, says, mend = BAD[what]
    rank = 33 if what == "a large rank" else 2
    shape = Shape(2, 40, 8) if what == "a text that cannot be said" else Shape(2, 8)
    (tmp_path / "model").mkdir()
    with pytest.raises(kind, match=says) as caught:
        deployment(make(tmp_path / "model"), [LoRA("all-linear", rank=rank)], shape=shape)
    assert mend in caught.value.mend
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (sharded, "MB)"),
        (lambda p: pickled(p, net("Llama").state_dict()), "MB)"),
        (lambda p: of_dtype(p, torch.bfloat16), "MB, bfloat16 converted to float32)"),
        (lambda p: of_dtype(p, torch.float64), "MB, float64 rounded to float32)"),
    ],
    ids=["sharded", "pickled", "bfloat16", "float64"],
)
def test_weights_in_other_forms_are_the_same_model(
    make: Callable[[Path], Path], said: str, tmp_path: Path
) -> None:
    told: list[str] = []
    (tmp_path / "model").mkdir()
    folder = make(tmp_path / "model")
    made = deployment(folder, [LoRA("*.q_proj", rank=2)], shape=Shape(2, 8), report=told.append)
    assert told[0].startswith("read the weights of model")
    assert told[0].endswith(said)
    tokens = made.batch["tokens"]
    wanted = net("Llama")
    if "bfloat16" in said:
        wanted = wanted.to(torch.bfloat16).float()
    with torch.no_grad():
        torch.testing.assert_close(made.model(tokens), wanted(tokens).logits)


@pytest.mark.parametrize(
    ("settings", "task"),
    [
        ({"num_labels": 1}, RegressionTask(("input_ids", "attention_mask"))),
        ({"num_labels": 3, "problem_type": "regression"}, RegressionTask(("input_ids", "attention_mask"))),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, None),
    ],
    ids=["a number", "numbers", "several yes and no"],
)
def test_what_the_answers_are_is_what_the_config_says(
    settings: dict[str, Any], task: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = hf.BertForSequenceClassification(hf.BertConfig(**_BERT, **settings)).eval()
    made = deployment(saved(tmp_path, model), [LoRA("*.query", rank=2)], shape=Shape(3, 8))
    batch = dict(made.batch)
    assert task is None or made.task == task
    theirs = model(batch["input_ids"], batch["attention_mask"], labels=batch["labels"]).loss
    torch.testing.assert_close(
        made.task.losses(made.model(*[batch[n] for n in made.task.inputs]), batch).mean(), theirs
    )
    programs = trace_programs(made.model, made.task, made.batch, made.inputs_of_predict())
    check_traced(programs, cases(made.model, made.task, made.batch, made.inputs_of_predict(), rounds=1))


def test_speech_is_learned_as_transformers_learns_it(tmp_path: Path) -> None:
    made = family("wav2vec 2 that writes", tmp_path)
    batch = dict(made.batch)
    batch["labels"] = torch.tensor([[3, 0, 3], [5, 7, 2], [0, 0, 9]])  # the blank, 0, fills rows
    theirs = net("wav2vec 2 that writes")
    theirs.config.ctc_loss_reduction = "sum"
    for row in range(3):
        labels = batch["labels"][row : row + 1]
        wanted = theirs(
            batch["input_values"][row : row + 1], labels=torch.where(labels == 0, -100, labels)
        ).loss
        mine = made.task.losses(made.model(batch["input_values"]), batch)[row]
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4)
