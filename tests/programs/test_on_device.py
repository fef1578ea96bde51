"""What only a device would find out is refused when a deployment is made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models

from pfl_mobile import LoRA, NgramMemory, VocabularySlots
from pfl_mobile.errors import ConfigError, DataError, PrivacyError, UnknownNameError
from pfl_mobile.modules.personalize import personalize
from pfl_mobile.plan.schema import Plan
from pfl_mobile.programs.deployment import Deployment, text_parts
from pfl_mobile.programs.tasks import ClassificationTask, TokenTask
from pfl_mobile.text.encoder import SubwordTokenizer, TextEncoder, WordTokenizer
from pfl_mobile.text.rules import VERSION_1
from pfl_mobile.text.specials import SPECIALS, SpecialIds
from tests import tiny
from tests.backbones import Decoder

TEXT = tiny.deployment()
ARRAYS = tiny.arrays()
SIZE = tiny.tokenizer().size
TRAIN: dict[str, Any] = {"kind": "train", "steps": 1, "optimizer": {"kind": "sgd", "lr": 0.1}}


def plan(*phases: dict[str, Any], **rest: Any) -> Plan:
    return Plan.model_validate({"phases": [*phases, TRAIN], **rest})


def decoder(*modules: Any) -> Any:
    return personalize(Decoder(vocabulary=SIZE).eval(), [LoRA("*.attn.[qv]", rank=2), *modules])


SLOTS = VocabularySlots(embedding="embed", output="head", count=tiny.SLOTS)
TOKENS = {name: torch.zeros(4, 8, dtype=torch.int64) for name in ("tokens", "labels")}
ROWS = {**TOKENS, "weight": torch.ones(4, 8)}
NO_TEXT: dict[str, Any] = {"tokenizer": None, "encoder": None, "batch": ROWS, "plan": plan()}
ENCODER = dict(TEXT.encoder or {})

BYTES = Tokenizer(models.BPE({c: i for i, c in enumerate("sedyou")}, []))
SUBWORDS: dict[str, Any] = {
    "tokenizer": BYTES.to_str().encode(),
    "encoder": {**ENCODER, "rules": 2, "slots": 0, "subwords": {"pad": 0, "bos": 0, "eos": 0, "unk": None}},
}

REFUSED: dict[str, tuple[Deployment, dict[str, Any], type[Exception], str]] = {
    "slots over subwords": (
        TEXT,
        {**SUBWORDS, "encoder": {**SUBWORDS["encoder"], "slots": tiny.SLOTS}},
        ConfigError,
        "subwords",
    ),
    "the encoder says other piece rules": (
        TEXT,
        {"encoder": {**ENCODER, "rules": 1}},
        ConfigError,
        "version 1 of the piece rules",
    ),
    "slots on arrays": (TEXT, {**NO_TEXT, "model": decoder(SLOTS)}, ConfigError, "vocabulary slots"),
    "assign phase on arrays": (TEXT, {"tokenizer": None, "encoder": None}, ConfigError, "vocabulary slots"),
    "memory on one array an example": (
        ARRAYS,
        {
            "model": decoder(NgramMemory(capacity=8, order=2)),
            "task": TokenTask(SIZE, inputs=("x",)),
            "batch": {"x": TOKENS["tokens"], "labels": TOKENS["labels"], "weight": torch.ones(4, 8)},
        },
        ConfigError,
        "n-gram memory",
    ),
    "memorize phase without a memory": (
        ARRAYS,
        {"plan": plan({"kind": "memorize"})},
        UnknownNameError,
        "no such tensors",
    ),
    "assign phase without slots": (
        TEXT,
        {"plan": plan({"kind": "assign_slots", "module": "memory"})},
        UnknownNameError,
        "no such tensors",
    ),
    "memorize phase into slots": (
        TEXT,
        {"plan": plan({"kind": "memorize", "module": "slots"})},
        UnknownNameError,
        "no such tensors",
    ),
    "a group that is not there": (
        ARRAYS,
        {"plan": plan({**TRAIN, "group": ["module:slots"]})},
        UnknownNameError,
        "matches no tensor",
    ),
    "a guard's metric": (ARRAYS, {"plan": plan(guard={"metric": "top3"})}, UnknownNameError, "'top3'"),
    "a measured metric": (
        ARRAYS,
        {"plan": plan({"kind": "measure", "report": "x", "metric": "mae"})},
        UnknownNameError,
        "'mae'",
    ),
    "a set before it is made": (
        ARRAYS,
        {"plan": plan({"kind": "move", "toward": "mine", "rate": 0.5}, {**TRAIN, "trains": "mine"})},
        ConfigError,
        "before any phase makes it",
    ),
    "the start of no train phase": (
        ARRAYS,
        {"plan": plan({"kind": "move", "toward": "start", "rate": 0.5})},
        ConfigError,
        "only a train phase",
    ),
    "a set of fewer tensors": (
        ARRAYS,
        {
            "plan": plan(
                {**TRAIN, "trains": "mine", "group": ["*lora_A"]},
                {"kind": "repeat", "times": 2, "phases": [{**TRAIN, "anchor": "mine", "mu": 1.0}]},
            )
        },
        ConfigError,
        "holds other tensors only",
    ),
    "an empty batch": (
        ARRAYS,
        {"batch": {"x": torch.randn(0, 6), "labels": torch.zeros(0).long(), "weight": torch.ones(0)}},
        ConfigError,
        "no example",
    ),
    "an encoder of another batch": (
        ARRAYS,
        {"encoder": {"kind": "arrays", "batch": 9}},
        ConfigError,
        "9 examples",
    ),
    "text without a tokenizer": (TEXT, {"tokenizer": None}, ConfigError, "has no tokenizer"),
    "a tokenizer without text": (ARRAYS, {"tokenizer": TEXT.tokenizer}, ConfigError, "takes arrays"),
    "a foreign tokenizer": (TEXT, {"tokenizer": b'{"model": {"vocab": {"a": 0}}}'}, DataError, "tokenizer"),
    "bytes that are no tokenizer": (TEXT, {"tokenizer": b"\xff\xfe"}, DataError, "tokenizer"),
    "an encoder of another kind": (
        TEXT,
        {"encoder": {"kind": "audio"}},
        ConfigError,
        "encoder of deployment",
    ),
    "an encoder without a length": (
        TEXT,
        {"encoder": {"kind": "text"}},
        ConfigError,
        "encoder of deployment",
    ),
    "rows of another length": (TEXT, {"encoder": {**ENCODER, "length": 9}}, ConfigError, "rows of"),
    "more slots than the model has": (
        TEXT,
        {"encoder": {**ENCODER, "slots": 4}, "task": TokenTask(SIZE + 4)},
        ConfigError,
        "3 vocabulary slots, the encoder 4",
    ),
    "a task without the slots": (TEXT, {"task": TokenTask(SIZE)}, ConfigError, "has .* and 3 slots"),
    "a smaller vocabulary": (
        TEXT,
        {"encoder": {**ENCODER, "vocabulary": 5}},
        ConfigError,
        "the tokenizer has",
    ),
    "text for another task": (TEXT, {"task": ClassificationTask(4)}, ConfigError, "classification task"),
    "specials as suggestions": (
        TEXT,
        {"task": TokenTask(SIZE + 3, specials=0)},
        ConfigError,
        "special tokens",
    ),
    "another unknown word": (
        TEXT,
        {"model": decoder(replace(SLOTS, unk=3), NgramMemory(capacity=8, order=2))},
        ConfigError,
        "unknown word",
    ),
    "a memory of another vocabulary": (
        TEXT,
        {"model": decoder(SLOTS, NgramMemory(capacity=8, order=2, vocabulary=9))},
        ConfigError,
        "is for 9 words",
    ),
    "limits that no manifest has": (ARRAYS, {"limits": {"max_exampels": 3}}, ConfigError, "max_exampels"),
    "limits of nothing": (ARRAYS, {"limits": {"max_examples": 0}}, ConfigError, "max_examples"),
    "too few examples for the guard": (
        ARRAYS,
        {"limits": {"max_examples": 20}, "plan": plan(guard={"min_examples": 9})},
        ConfigError,
        "nothing would ever be trained",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_fail_on_a_device_is_refused(name: str) -> None:
    base, changes, error, text = REFUSED[name]
    with pytest.raises(error, match=text):
        replace(base, **changes)


def test_rows_of_tokens_may_fill_a_memory_without_an_encoder() -> None:
    model = decoder(NgramMemory(capacity=8, order=2))
    settings = {**NO_TEXT, "plan": plan({"kind": "memorize"})}
    assert replace(TEXT, model=model, task=TokenTask(SIZE), **settings).encoder is None


@pytest.mark.parametrize(
    ("tensor", "value"),
    [("memory.next", 7), ("memory.context", 7), ("slots.active", 1.0), ("embed.slot_rows", 0.5)],
)
def test_values_that_hold_somebodys_words_are_refused(tensor: str, value: float) -> None:
    deployment = tiny.deployment()
    own = deployment.model.values()[tensor].clone()
    own[0] = value
    deployment.model.load_values({tensor: own}, partial=True)
    with pytest.raises(PrivacyError, match=tensor):
        replace(deployment)


def test_the_examples_of_a_text_model_are_nobodys() -> None:
    real = {name: torch.full((tiny.BATCH, tiny.LENGTH), 5) for name in ("tokens", "labels")}
    deployment = replace(
        TEXT,
        batch={**real, "weight": torch.ones(tiny.BATCH, tiny.LENGTH)},
        predict_batch={"tokens": real["tokens"][:1], "position": torch.tensor([1])},
    )
    for rows in (deployment.batch, deployment.inputs_of_predict()):
        assert (rows["tokens"][:, 1:] != 5).any()
        assert int(rows["tokens"].max()) < SIZE
    labels, weight = deployment.batch["labels"], deployment.batch["weight"]
    assert torch.equal(weight > 0, labels >= len(SPECIALS))
    assert torch.equal(
        deployment.batch["tokens"][:, 1:][weight[:, 1:] > 0], labels[:, :-1][weight[:, 1:] > 0]
    )


def test_an_encoder_gets_the_piece_rules_of_its_tokenizer() -> None:
    entry = {k: v for k, v in ENCODER.items() if k != "rules"}
    assert replace(TEXT, encoder=entry).encoder == {**entry, "rules": 2}
    old = WordTokenizer.train(["see you"], SIZE, VERSION_1).to_json().encode()
    assert replace(TEXT, encoder=entry, tokenizer=old).encoder == {**entry, "rules": 1}


def test_a_model_over_subwords_is_a_deployment() -> None:
    words = SubwordTokenizer(SUBWORDS["tokenizer"].decode(), SpecialIds(0, 0, 0))
    parts = text_parts(TextEncoder(words, tiny.LENGTH, SIZE), tiny.BATCH)
    made = Deployment("bytes", decoder(), TokenTask(SIZE, specials=1), plan=plan(), **parts)
    assert made.encoder is not None
    assert made.encoder["subwords"] == {"pad": 0, "bos": 0, "eos": 0, "unk": None}
    assert made.tokenizer == SUBWORDS["tokenizer"]
