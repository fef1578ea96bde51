"""What a model author hands to ``pfl-export``: the model and everything a device needs besides it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from pfl_mobile.errors import ConfigError
from pfl_mobile.modules.personalize import PersonalizedModel
from pfl_mobile.plan.check import check_plan
from pfl_mobile.plan.schema import Plan
from pfl_mobile.programs.made_up import text_batch, text_context
from pfl_mobile.programs.on_device import check_deployment
from pfl_mobile.programs.tasks import Batch, Task
from pfl_mobile.programs.weights import WeightFormat, weights_stored
from pfl_mobile.text.rules import NEWEST
from pfl_mobile.text.scripts import scripts_not_served
from pfl_mobile.text.subwords import SubwordTokenizer
from pfl_mobile.text.tokenizer import WordTokenizer

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from pfl_mobile.bundle.manifest import StrategyEntry
    from pfl_mobile.programs.weights import StoredModel
    from pfl_mobile.text.encoder import TextEncoder
    from pfl_mobile.text.vocabulary import VocabularyReport


@dataclass(frozen=True)
class Deployment:
    """A personalized model, ready to be exported.

    Args:
        name: name of the bundle.
        model: backbone with modules, made by :func:`pfl_mobile.modules.personalize`.
        task: loss, metrics and predictions.
        batch: example batch with labels and ``weight``; its shapes become the programs' fixed shapes. It ships, as
            the golden batch, so give made-up rows and not a user's. Of a model that takes text only the shapes are
            taken, and the words are made up.
        plan: what a device does locally.
        predict_batch: example inputs of ``predict``; by default the first example of ``batch``. It ships too.
        version: version of the bundle.
        tokenizer: content of a Hugging Face ``tokenizer.json``, of words or (with ``subwords`` in the encoder) of any
            kind; token models need it to take text.
        encoder: manifest entry that says how examples become batches; arrays by default. For text without ``rules``,
            those of the tokenizer are put in.
        limits: manifest entry ``limits``.
        host_sets: names of sets of arrays that the app hands to the plan (controls, masks).
        strategy: of the rounds that ``pfl serve`` runs with the bundle; None: unless told another one, it averages
            what the plan uploads.
        vocabulary: how the words of the tokenizer were chosen; None where nobody says.
        weights: how frozen weights are stored, `float32`, `int8` or `int4` (or `int4:128` with the size of a group);
            the programs compute in float32 with what is stored.
    """

    name: str
    model: PersonalizedModel
    task: Task
    batch: Batch
    plan: Plan
    predict_batch: Batch | None = None
    version: str = "1"
    tokenizer: bytes | None = None
    encoder: dict[str, Any] | None = None
    limits: dict[str, int] = field(default_factory=dict)
    host_sets: tuple[str, ...] = ()
    strategy: StrategyEntry | None = None
    vocabulary: VocabularyReport | None = None
    weights: str | WeightFormat = "float32"

    def __post_init__(self) -> None:
        """Check what can be checked before anything is traced (ConfigError)."""
        if not self.name or not self.name.isprintable() or len(self.name) > 200:
            raise ConfigError(
                f"{self.name!r} is not the name of a deployment", mend="give a short printable name"
            )
        if not isinstance(self.model, PersonalizedModel):
            raise ConfigError(
                f"the model of deployment {self.name!r} is a {type(self.model).__name__}",
                mend="put modules into it first: personalize(backbone, [LoRA(...)])",
            )
        object.__setattr__(self, "weights", WeightFormat.of(self.weights))
        sets: dict[str, dict[str, Any]] = {name: {} for name in ("initial", "global", *self.host_sets)}
        check_plan(self.plan, self.model.device_tensors(), sets, ())
        self._say_of_text()
        check_deployment(self)
        if self.encoder is not None and self.encoder["kind"] == "text":
            self._make_up_texts(**self.encoder)

    def _say_of_text(self) -> None:
        """Version of the piece rules and scripts that are not served, where the entry leaves them to the tokenizer."""
        entry = self.encoder
        if entry is None or entry.get("kind") != "text" or self.tokenizer is None:
            return
        file, subwords = self.tokenizer.decode(errors="replace"), entry.get("subwords")
        words = WordTokenizer.from_json(file) if subwords is None else None
        said = {"rules": NEWEST.version, "scripts_not_served": scripts_not_served(words)}
        if words is not None:
            said["rules"] = words.rules.version
        object.__setattr__(self, "encoder", {**said, **entry})

    def _make_up_texts(self, *, length: int, batch: int, vocabulary: int, **_rest: Any) -> None:
        """Nobody's words in the place of the examples, as they ship."""
        rows: dict[str, torch.Tensor] = text_batch(batch, length, vocabulary)
        object.__setattr__(self, "batch", {name: rows[name] for name in self.batch})
        context = text_context(length, vocabulary)
        object.__setattr__(self, "predict_batch", context)

    def stored(self) -> AbstractContextManager[StoredModel | None]:
        """Have the model compute with its weights as they are stored (`pfl_mobile.programs.weights`)."""
        return weights_stored(self.model, WeightFormat.of(self.weights))

    def inputs_of_predict(self) -> Batch:
        """The example inputs of ``predict``."""
        if self.predict_batch is not None:
            return self.predict_batch
        if self.task.predict_extra:
            raise ConfigError(
                f"predict also takes {list(self.task.predict_extra)}, which the batch does not have",
                mend="give predict_batch=",
            )
        return {name: self.batch[name][:1] for name in self.task.inputs}


def text_parts(encoder: TextEncoder, batch: int) -> dict[str, Any]:
    """What a deployment of a token model has besides: arguments for :class:`Deployment`.

    Args:
        encoder: of the model's users, without words of one's own.
        batch: examples in a batch on a device.
    """
    tokenizer, subwords = encoder.tokenizer, None
    if isinstance(tokenizer, SubwordTokenizer):
        subwords = asdict(tokenizer.specials)
        subwords["unk"] = None if tokenizer.specials.unk < 0 else tokenizer.specials.unk
    return {
        "batch": text_batch(batch, encoder.length, encoder.vocabulary),
        "predict_batch": text_context(encoder.length, encoder.vocabulary),
        "tokenizer": tokenizer.to_json().encode(),
        "vocabulary": tokenizer.origin if isinstance(tokenizer, WordTokenizer) else None,
        "encoder": {
            "kind": "text",
            "length": encoder.length,
            "batch": batch,
            "vocabulary": encoder.vocabulary,
            "slots": encoder.slots,
            "rules": tokenizer.rules.version,
            "subwords": subwords,
        },
    }
