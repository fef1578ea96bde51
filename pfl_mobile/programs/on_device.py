"""What only a device would find out about a deployment: looked at before anything is exported.

A bundle whose programs are right can still be of no use: a plan that names words where examples are arrays, a
tokenizer that the device cannot read, an n-gram memory that holds somebody's text already. Each of these is an error
here that names it, and not one on a phone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pydantic
import torch

from pfl_mobile.bundle.manifest import EncoderEntry, Limits, TextEncoderEntry, describe
from pfl_mobile.errors import ConfigError, PrivacyError, UnknownNameError, near
from pfl_mobile.modules.memory import NgramMemory
from pfl_mobile.modules.slots import VocabularySlots
from pfl_mobile.rows import holdout_size
from pfl_mobile.text.encoder import TextEncoder
from pfl_mobile.text.specials import SPECIALS, UNK, SpecialIds
from pfl_mobile.text.subwords import SubwordTokenizer
from pfl_mobile.text.tokenizer import WordTokenizer

if TYPE_CHECKING:
    from pfl_mobile.modules.registry import ModuleConfig
    from pfl_mobile.plan.phases import Examples
    from pfl_mobile.programs.deployment import Deployment


def check_deployment(deployment: Deployment) -> None:
    """Refuse what would fail, do nothing, or give somebody's words away on a device.

    Raises:
        ConfigError, UnknownNameError: naming the two parts that do not fit.
        DataError: the tokenizer is not one that devices read.
        PrivacyError: the values that would ship hold a user's words.
    """
    encoder = _encoder(deployment)
    _check_batch(deployment, encoder)
    if encoder is None:
        _check_arrays(deployment)
    else:
        _check_text(deployment, encoder)
    _check_metrics(deployment)
    _check_enough(deployment)
    _check_nobodys(deployment)


def _encoder(deployment: Deployment) -> TextEncoderEntry | None:
    """How examples become batches; None for arrays."""
    try:
        Limits.model_validate(deployment.limits)
    except pydantic.ValidationError as error:
        known = ", ".join(Limits.model_fields)
        raise ConfigError(
            describe(error, f"limits of deployment {deployment.name!r}"),
            mend=f"give some of {known}, 1 or more each",
        ) from error
    if deployment.encoder is None:
        return None
    try:
        found: object = pydantic.TypeAdapter(EncoderEntry).validate_python(deployment.encoder)
    except pydantic.ValidationError as error:
        raise ConfigError(
            describe(error, f"encoder of deployment {deployment.name!r}"),
            mend="take it from text_parts(encoder, batch), or leave it out for arrays",
        ) from error
    return found if isinstance(found, TextEncoderEntry) else None


def _check_batch(deployment: Deployment, encoder: TextEncoderEntry | None) -> None:
    weight = deployment.batch.get("weight")
    if not isinstance(weight, torch.Tensor):
        return  # tracing says what a batch needs
    size = len(weight) if weight.dim() else 0
    if not size:
        raise ConfigError(
            f"the example batch has weights of shape {list(weight.shape)}: devices could put no example into a batch",
            mend="give at least 1 example, usually 8 to 32: their number is what a device trains on at once",
        )
    told = encoder.batch if encoder else (deployment.encoder or {}).get("batch", size)
    if told != size:
        raise ConfigError(
            f"the encoder gives batches of {told} examples, the programs take {size}",
            mend="give encoder and example batch the same size",
        )
    taken = sorted({info.name for info in deployment.model.device_tensors()} & set(deployment.batch))
    if taken:
        raise ConfigError(
            f"a device tensor and an entry of the batch are both called {taken[0]!r}, so a program would have two "
            "inputs of that name",
            mend="rename the entry, or put the layer one level deeper",
        )


def _of_kind(deployment: Deployment, kind: type[ModuleConfig]) -> dict[str, ModuleConfig]:
    return {name: config for name, config in deployment.model.configs.items() if isinstance(config, kind)}


def _check_arrays(deployment: Deployment) -> None:
    """Examples are arrays: nothing can be named, and a memory needs rows of tokens."""
    if deployment.tokenizer is not None:
        raise ConfigError(
            f"deployment {deployment.name!r} has a tokenizer but takes arrays, so no device would read it",
            mend="give the encoder too (text_parts(encoder, batch) gives both), or leave the tokenizer out",
        )
    words = [f"{name!r} are vocabulary slots" for name in _of_kind(deployment, VocabularySlots)]
    words += [f"the plan's {kind} phase names words" for kind in _kinds(deployment, "texts")]
    if words:
        raise ConfigError(
            f"{words[0]}, but the examples are arrays, which have no words",
            mend="give tokenizer and encoder (text_parts(encoder, batch)), or leave out VocabularySlots and the "
            "assign_slots phase",
        )
    memories = [f"{name!r} is an n-gram memory" for name in _of_kind(deployment, NgramMemory)]
    memories += [f"the plan's {kind} phase fills an n-gram memory" for kind in _kinds(deployment, "tokens")]
    if not memories:
        return
    rows = [deployment.batch.get(name) for name in ("tokens", "labels", "weight")]
    shapes = [tuple(r.shape) if isinstance(r, torch.Tensor) else None for r in rows]
    if (
        shapes[0] is None
        or len(shapes[0]) != 2
        or len(set(shapes)) != 1
        or not _ids(rows[0])
        or not _ids(rows[1])
    ):
        raise ConfigError(
            f"{memories[0]}, but the rows are no rows of tokens: a device could remember nothing",
            mend="name the ids int64 [batch, length] 'tokens', with 'labels' and 'weight' of that shape, or leave "
            "out NgramMemory and the memorize phase",
        )


def _ids(rows: object) -> bool:
    return isinstance(rows, torch.Tensor) and rows.dtype == torch.int64


def _kinds(deployment: Deployment, examples: Examples) -> list[str]:
    """Kinds of the phases that take this of the examples."""
    return [phase.kind for phase in deployment.plan.distinct_steps() if phase.examples == examples]


def _check_text(deployment: Deployment, encoder: TextEncoderEntry) -> None:
    """Examples are texts: what the device's encoder gives is what the programs take."""
    name, task = deployment.name, deployment.task
    if deployment.tokenizer is None:
        raise ConfigError(
            f"deployment {name!r} takes text but has no tokenizer",
            mend="give both: text_parts(encoder, batch)",
        )
    TextEncoder(_tokenizer(deployment.tokenizer, encoder), encoder.length, encoder.vocabulary, encoder.slots)
    wanted = {"tokens", "labels", "weight"}
    if {*task.inputs, *task.labels} | {"weight"} != wanted or set(task.predict_extra) - {"position"}:
        raise ConfigError(
            f"deployment {name!r} takes text, which gives {sorted(wanted)}, but a {task.kind} task reads "
            f"{[*task.inputs, *task.labels, *task.predict_extra]}",
            mend="use a TokenTask, or leave encoder and tokenizer out and let the app make arrays",
        )
    shape = (encoder.batch, encoder.length)
    for entry in sorted(wanted & set(deployment.batch)):
        if tuple(deployment.batch[entry].shape) != shape:
            raise ConfigError(
                f"the encoder gives rows of {list(shape)}, the example batch has {entry!r} of "
                f"{list(deployment.batch[entry].shape)}",
                mend="give the encoder the batch and length of the example batch",
            )
    specials = getattr(task, "specials", None)
    if encoder.subwords is None and isinstance(specials, int) and specials < len(SPECIALS):
        raise ConfigError(
            f"the task would suggest special tokens: its specials are the first {specials} ids, the encoder's "
            f"{', '.join(SPECIALS)} are the first {len(SPECIALS)}",
            mend=f"TokenTask(vocabulary, specials={len(SPECIALS)})",
        )
    total = task.manifest()["vocabulary"]
    if total not in (None, encoder.vocabulary + encoder.slots):
        raise ConfigError(
            f"the task predicts {total} words, the encoder has {encoder.vocabulary} and {encoder.slots} slots",
            mend="the task's vocabulary counts the slots: vocabulary + slots",
        )
    _check_words(deployment, encoder)


def _tokenizer(content: bytes, encoder: TextEncoderEntry) -> WordTokenizer | SubwordTokenizer:
    text = content.decode(errors="replace")
    if encoder.subwords is not None:
        return SubwordTokenizer(text, SpecialIds(**encoder.subwords.ids()))
    tokenizer = WordTokenizer.from_json(text)
    if tokenizer.rules.version != encoder.rules:
        raise ConfigError(
            f"the encoder says version {encoder.rules} of the piece rules, the tokenizer is of version "
            f"{tokenizer.rules.version}",
            mend="take the encoder from text_parts(encoder, batch), or leave rules out",
        )
    return tokenizer


def _check_words(deployment: Deployment, encoder: TextEncoderEntry) -> None:
    """Slots and memory are for the encoder's ids."""
    slots = {n: c for n, c in _of_kind(deployment, VocabularySlots).items() if isinstance(c, VocabularySlots)}
    if len(slots) > 1:
        raise ConfigError(
            f"the model has vocabulary slots twice, {' and '.join(map(repr, slots))}, and a device one list of words",
            mend="use one module of slots",
        )
    count = sum(config.count for config in slots.values())
    if count != encoder.slots:
        raise ConfigError(
            f"the model has {count} vocabulary slots, the encoder {encoder.slots}",
            mend="give TextEncoder(slots=) and VocabularySlots(count=) the same number",
        )
    for name, config in slots.items():
        if config.unk != UNK:
            raise ConfigError(
                f"{name!r} starts as the word with the id {config.unk}; the encoder's unknown word is {UNK}",
                mend=f"VocabularySlots(..., unk={UNK})",
            )
    for name, memory in _of_kind(deployment, NgramMemory).items():
        known = memory.vocabulary if isinstance(memory, NgramMemory) else None
        if known not in (None, encoder.vocabulary + count):
            raise ConfigError(
                f"{name!r} is for {known} words, the encoder has {encoder.vocabulary} and {count} slots",
                mend="NgramMemory(vocabulary=) counts the slots too",
            )


def _check_metrics(deployment: Deployment) -> None:
    """What the plan measures, the programs give."""
    task, plan = deployment.task, deployment.plan
    measured = ("loss", *task.manifest()["metrics"])  # type: ignore[misc]
    asked = {plan.guard.metric: "guard compares"}
    asked |= {m: f"{phase.kind} phase reads" for phase in plan.distinct_steps() for m in phase.metrics}
    for metric, what in asked.items():
        if metric not in measured:
            raise UnknownNameError(
                f"the plan's {what} {metric!r}, which a {task.kind} task does not measure",
                mend=near(metric, measured),
            )


def _check_enough(deployment: Deployment) -> None:
    """A device that keeps as many examples as it may has enough of them for the plan."""
    most, plan = deployment.limits.get("max_examples"), deployment.plan
    if most is None:
        return
    held = holdout_size(most, plan.holdout)
    if held < plan.guard.min_examples:
        raise ConfigError(
            f"a device keeps at most {most} examples and holds out {held} of them, but the guard needs "
            f"{plan.guard.min_examples}: nothing would ever be trained",
            mend="raise max_examples or the plan's holdout, or lower the guard's min_examples",
        )


def _check_nobodys(deployment: Deployment) -> None:
    """The values that ship name nobody's words: memories are empty, slots free and all alike."""
    values = deployment.model.values()
    assigned = {info.module for info in deployment.model.device_tensors() if info.update == "assign"}
    for info in deployment.model.device_tensors():
        value = values[info.name]
        if info.update != "gradient" and bool((value != 0).any()):
            what = "is not empty" if info.update == "memorize" else "has slots in use"
        elif info.module in assigned and info.update == "gradient" and bool((value != value[:1]).any()):
            what = "has rows that differ, as if trained on somebody's words"
        else:
            continue
        raise PrivacyError(
            f"the shipped value of {info.name!r} {what}; every device would get one user's words",
            mend="export the model as personalize() made it: model.load_values(...) of a user must not come before",
        )
