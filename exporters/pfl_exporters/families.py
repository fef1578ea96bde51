"""What a model of transformers is for, by the name of its class: the task, the example batch, the forward's arguments.

Every shape is fixed: texts have a length, a target of a translation has its own, pictures and sounds are of one size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfl_exporters.model_folder import ModelFolder, read_object
from pfl_mobile.errors import ConfigError, DataError
from pfl_mobile.files.reading import read_text
from pfl_mobile.programs.deployment import text_parts
from pfl_mobile.programs.tasks import (
    Batch,
    ClassificationTask,
    CustomTask,
    RegressionTask,
    Task,
    TokenTask,
)
from pfl_mobile.text.encoder import TextEncoder
from pfl_mobile.text.specials import SpecialIds
from pfl_mobile.text.subwords import MOST_TOKENIZER_VALUES, SubwordTokenizer

#: Tokens, and samples of a sound (a second at the 16 kHz that such models hear), where nobody says.
TOKENS, SAMPLES = 64, 16_000


@dataclass(frozen=True)
class Shape:
    """What a device trains with at once.

    Attributes:
        batch: examples.
        length: of each: tokens of a text (64 where it is None), samples of a sound (16000). Pictures and spectrograms
            have the size that their model says.
        target: tokens that a model with encoder and decoder writes, None: as many as it reads, or 64; of a model that
            writes down speech, None: half as many as it hears frames.
    """

    batch: int = 8
    length: int | None = None
    target: int | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError for sizes that are none."""
        lengths = [n for n in (self.length, self.target) if n is not None]
        if self.batch < 1 or any(n < 2 for n in lengths):
            raise ConfigError(
                f"batch {self.batch} and length {', '.join(map(str, lengths))}",
                mend="at least 1 example, and at least 2 tokens of each",
            )


@dataclass(frozen=True)
class Family:
    """What makes a deployment of a model.

    Attributes:
        arguments: of the model's forward, for each input of the task.
        batch: examples, which are nobody's.
        more: what a deployment has besides.
        causal: each output may only depend on the tokens before it.
    """

    task: Task
    arguments: tuple[str, ...]
    batch: Batch
    more: Mapping[str, Any] = field(default_factory=dict)
    causal: bool = False


def family(folder: ModelFolder, shape: Shape) -> Family:
    """Task and batch of a model.

    Raises:
        ConfigError: it has no such length, or reads what no task here gives it.
        DataError: its tokenizer cannot be read, or is another model's.
    """
    return next(make for ends, make in KINDS.items() if folder.architecture.endswith(ends))(folder, shape)


def called(made: Any, arguments: tuple[str, ...]) -> Any:
    """The class with a forward that takes these arguments in this order and gives the logits.

    A class of its own and no module around the model: the paths of its layers, which adapters know, stay as they are.
    """

    def forward(self: nn.Module, *inputs: Tensor) -> Tensor:
        logits: Tensor = made.forward(self, **dict(zip(arguments, inputs, strict=True))).logits
        return logits

    return type(made.__name__, (made,), {"forward": forward, "__module__": made.__module__})


def check_causal(folder: ModelFolder, model: nn.Module) -> None:
    """A model that is to learn the next token must not see it.

    Raises:
        ConfigError: a later token changes an earlier output.
    """
    first = torch.arange(8).unsqueeze(0) % folder.config.vocab_size
    other = first.clone()
    other[0, -1] = folder.config.vocab_size - 1
    with torch.no_grad():
        before, after = model(first)[:, :-1], model(other)[:, :-1]
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-4 * float(before.abs().max())):
        raise ConfigError(
            f"{folder.name}: {folder.architecture} sees the tokens behind each place, so it would learn to copy the "
            "next token",
            mend="set is_decoder to true in its config.json if it was trained so; or give a causal language model",
        )


def _most(
    folder: ModelFolder, length: int, setting: str = "max_position_embeddings", flag: str = "--length"
) -> None:
    most = getattr(folder.config, setting, None)
    if isinstance(most, int) and folder.config.model_type in _OFFSET:
        most -= (_first(folder.config.pad_token_id) or 0) + 1  # its table begins behind the padding
    if isinstance(most, int) and length > most > 0:
        raise ConfigError(
            f"{folder.name} reads at most {most} tokens, not {length}", mend=f"{flag} {most} or less"
        )


#: Models whose table of positions holds fewer than it has rows, as RoBERTa's.
_OFFSET = (
    "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "data2vec-text", "longformer",
    "mpnet", "ibert", "xmod", "esm",
)  # fmt: skip


def _language(folder: ModelFolder, shape: Shape) -> Family:
    length = shape.length or TOKENS
    _most(folder, length)
    tokenizer = _tokenizer(folder)
    vocabulary = folder.config.vocab_size
    parts = text_parts(TextEncoder(tokenizer, length, vocabulary), shape.batch)
    specials, never = _never_suggested(tokenizer, vocabulary)
    task = TokenTask(vocabulary, specials=specials, never=never)
    return Family(task, ("input_ids",), parts.pop("batch"), parts, causal=True)


def _tokenizer(folder: ModelFolder) -> SubwordTokenizer:
    file = folder.path / "tokenizer.json"
    if not file.is_file():
        raise DataError(
            f"{folder.name} has no tokenizer.json",
            mend="save the fast tokenizer beside the model: AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)",
        )
    ids = {name: _first(getattr(folder.config, f"{name}_token_id", None)) for name in ("pad", "bos", "eos")}
    told = folder.path / "tokenizer_config.json"
    added = read_object(file, MOST_TOKENIZER_VALUES).get("added_tokens") or []
    known = {t["content"]: t["id"] for t in added if isinstance(t, dict) and {"content", "id"} <= set(t)}
    said = read_object(told) if told.is_file() else {}
    for name in ("pad", "bos", "eos", "unk"):
        token = said.get(f"{name}_token")
        content = token.get("content") if isinstance(token, dict) else token
        if ids.get(name) is None and isinstance(content, str) and content in known:
            ids[name] = known[content]
    eos = ids["eos"] if ids["eos"] is not None else ids["bos"]
    if eos is None:
        raise DataError(
            f"{folder.name} does not say which token ends a text",
            mend="set eos_token_id in config.json, or eos_token in tokenizer_config.json",
        )
    bos = eos if ids["bos"] is None else ids["bos"]
    unk = ids.get("unk")
    tokenizer = SubwordTokenizer(
        read_text(file),
        SpecialIds(eos if ids["pad"] is None else ids["pad"], bos, eos, -1 if unk is None else unk),
    )
    if tokenizer.size > folder.config.vocab_size:
        raise DataError(
            f"the tokenizer of {folder.name} has {tokenizer.size} ids, the model {folder.config.vocab_size}: it is "
            "not the model's",
            mend="give the tokenizer that the model was trained with",
        )
    return tokenizer


def _first(given: Any) -> int | None:
    """A model may have several tokens that end a text."""
    found = given[0] if isinstance(given, list) and given else given
    return found if isinstance(found, int) and found >= 0 else None


def _never_suggested(tokenizer: SubwordTokenizer, vocabulary: int) -> tuple[int, tuple[tuple[int, int], ...]]:
    """How many of the first ids are no suggestions, and ranges of the others: special tokens, and ids without one."""
    special = tokenizer.left_out | {tokenizer.specials.unk}
    none = [i in special or not tokenizer.has(i) for i in range(vocabulary)]
    edges = [
        i for i in range(vocabulary + 1) if (none[i] if i < vocabulary else False) != (i > 0 and none[i - 1])
    ]
    ranges = [*zip(edges[::2], edges[1::2], strict=True)]
    leading = ranges.pop(0)[1] if ranges and ranges[0][0] == 0 else 0
    return leading, tuple(ranges)


def _draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _texts(folder: ModelFolder, count: int, length: int) -> dict[str, Tensor]:
    """Rows of random tokens of several lengths: input_ids and attention_mask int64 [count, length]."""
    lengths = torch.arange(count) % max(length // 2, 1) + max(length // 2, 1)
    mask = (torch.arange(length) < lengths.unsqueeze(1)).to(torch.int64)
    pad = _first(folder.config.pad_token_id) or 0
    ids = torch.randint(0, folder.config.vocab_size, (count, length), generator=_draw())
    return {"input_ids": ids * mask + pad * (1 - mask), "attention_mask": mask}


def _answers(folder: ModelFolder, inputs: dict[str, Tensor]) -> Family:
    """An answer for each example: a class, several yes and no, or numbers, by what the config says."""
    config, names = folder.config, tuple(inputs)
    count, answers = len(next(iter(inputs.values()))), int(config.num_labels)
    weight = {"weight": torch.ones(count)}
    kind = config.problem_type or ("regression" if answers == 1 else "single_label_classification")
    if kind == "regression":
        numbers = torch.randn(count, answers, generator=_draw())
        return Family(RegressionTask(names), names, {**inputs, "labels": numbers, **weight})
    if kind == "multi_label_classification":
        flags = torch.randint(0, 2, (count, answers), generator=_draw()).float()
        return Family(CustomTask(_each_yes_or_no, names), names, {**inputs, "labels": flags, **weight})
    labels = torch.arange(count) % answers
    return Family(ClassificationTask(answers, inputs=names), names, {**inputs, "labels": labels, **weight})


def _each_yes_or_no(output: Tensor, batch: Batch) -> Tensor:
    """Mean over the labels of an example, which may have several: labels float32 [B, C] of 0 and 1."""
    return F.binary_cross_entropy_with_logits(output, batch["labels"], reduction="none").mean(-1)


def _sentences(folder: ModelFolder, shape: Shape) -> Family:
    if folder.made.main_input_name == "input_values":
        return _sounds(folder, shape)
    _reads(folder, "input_ids")
    length = shape.length or TOKENS
    _most(folder, length)
    if folder.config.pad_token_id is None:
        raise ConfigError(
            f"{folder.name} does not say which token fills rows, so it would not know where a text ends",
            mend="set pad_token_id in its config.json, to that of its eos token for instance",
        )
    return _answers(folder, _texts(folder, shape.batch, length))


def _tags(folder: ModelFolder, shape: Shape) -> Family:
    _reads(folder, "input_ids")
    length = shape.length or TOKENS
    _most(folder, length)
    inputs = _texts(folder, shape.batch, length)
    classes, names = int(folder.config.num_labels), tuple(inputs)
    labels = torch.randint(0, classes, (shape.batch, length), generator=_draw())
    batch = {**inputs, "labels": labels, "weight": inputs["attention_mask"].float()}
    return Family(ClassificationTask(classes, inputs=names, per_token=True), names, batch)


def _written(folder: ModelFolder, shape: Shape) -> Family:
    """An encoder reads texts or hears sounds, a decoder writes: decoder_input_ids and labels are the app's."""
    config, spectrogram = folder.config, folder.made.main_input_name == "input_features"
    if not config.is_encoder_decoder or not (spectrogram or folder.made.main_input_name == "input_ids"):
        raise ConfigError(
            f"{folder.name}: {folder.architecture} is no encoder with a decoder that reads texts or sounds alone",
            mend="write a function that returns a Deployment around the model: pfl-export my_model.py:build",
        )
    target = shape.target or (TOKENS if spectrogram else shape.length or TOKENS)
    if spectrogram:
        _most(folder, target, "max_target_positions", "--target-length")
        inputs = _spectrograms(folder, shape.batch)
    else:
        length = shape.length or TOKENS
        _most(folder, length)
        _most(folder, target, flag="--target-length")
        inputs = _texts(folder, shape.batch, length)
    vocabulary = config.vocab_size
    start = _first(config.decoder_start_token_id)
    if start is None:
        raise ConfigError(
            f"{folder.name} does not say which token a text that it writes begins with",
            mend="set decoder_start_token_id in its config.json",
        )
    pad = _first(config.pad_token_id)
    labels = torch.randint(0, vocabulary, (shape.batch, target), generator=_draw())
    before = torch.cat([torch.full((shape.batch, 1), start), labels[:, :-1]], dim=1)
    inputs = {**inputs, "decoder_input_ids": before}
    task = TokenTask(vocabulary, specials=int(pad == 0), inputs=tuple(inputs))
    batch = {**inputs, "labels": labels, "weight": torch.ones(shape.batch, target)}
    short = {**{name: value[:1] for name, value in inputs.items()}, "position": torch.tensor([target // 2])}
    return Family(task, tuple(inputs), batch, {"predict_batch": short})


def _pictures(folder: ModelFolder, shape: Shape) -> Family:
    sides = _sides(folder)
    if not all(isinstance(side, int) and side > 0 for side in sides):
        raise ConfigError(
            f"{folder.name} takes pictures of any size, and a program takes one",
            mend="write image_size into its config.json",
        )
    channels = getattr(folder.config, "num_channels", 3)
    pictures = torch.randn(shape.batch, channels, *sides, generator=_draw())
    return _answers(folder, {"pixel_values": pictures})


def _sides(folder: ModelFolder) -> tuple[Any, ...]:
    """Height and width: what the pictures were cut to for it, else what its config says."""
    file = folder.path / "preprocessor_config.json"
    told = read_object(file) if file.is_file() else {}
    for size in (told.get("crop_size") if told.get("do_center_crop", True) else None, told.get("size")):
        if isinstance(size, int):
            return size, size
        if isinstance(size, dict) and {"height", "width"} <= set(size):
            return size["height"], size["width"]
        if isinstance(size, dict) and isinstance(size.get("shortest_edge"), int):
            return size["shortest_edge"], size["shortest_edge"]
    side = getattr(folder.config, "image_size", None)
    return tuple(side) if isinstance(side, list | tuple) else (side, side)


def _sounds(folder: ModelFolder, shape: Shape) -> Family:
    """Classes of sounds: of spectrograms of one length, or of samples."""
    if folder.made.main_input_name == "input_features":
        return _answers(folder, _spectrograms(folder, shape.batch))
    _reads(folder, "input_values")
    if hasattr(folder.config, "num_mel_bins") and hasattr(folder.config, "max_length"):
        size = (shape.batch, folder.config.max_length, folder.config.num_mel_bins)
        return _answers(folder, {"input_values": torch.randn(size, generator=_draw())})
    return _answers(folder, {"input_values": _samples(folder, shape)})


def _speech(folder: ModelFolder, shape: Shape) -> Family:
    """What is said, without when: labels are token ids in rows that are filled with the blank, which is the padding."""
    _reads(folder, "input_values")
    samples = _samples(folder, shape)
    frames = _frames(folder, samples.shape[1])
    target = shape.target or max(frames // 2, 2)
    blank = _first(folder.config.pad_token_id)
    if blank is None:
        raise ConfigError(
            f"{folder.name} does not say which token is the blank", mend="set pad_token_id in its config.json"
        )
    if frames < 2 * target - 1:  # the same letter twice needs a blank between
        raise ConfigError(
            f"{folder.name} hears {frames} frames in {samples.shape[1]} samples, in which not each text of {target} "
            "tokens can be said",
            mend=f"--target-length {(frames + 1) // 2} or less, or a larger --length",
        )
    labels = torch.randint(0, folder.config.vocab_size, (shape.batch, target), generator=_draw())
    weight = torch.ones(shape.batch)
    task = CustomTask(partial(_alignments, blank=blank), ("input_values",))
    return Family(task, ("input_values",), {"input_values": samples, "labels": labels, "weight": weight})


def _alignments(output: Tensor, batch: Batch, blank: int) -> Tensor:
    """Minus the logarithm of the probability of each row's labels, over all ways to say them (Graves et al. 2006).

    Args:
        output: scores of tokens [B, frames, V].
        batch: ``labels`` int64 [B, T]; blanks among them are left out.
        blank: id of the token that is no label.
    """
    labels = batch["labels"]
    told = labels != blank
    # labels first and blanks behind them, in their order
    place = torch.where(told, torch.cumsum(told.to(torch.int64), 1) - 1, labels.shape[1])
    rows = torch.full((labels.shape[0], labels.shape[1] + 1), blank).scatter(1, place, labels)[:, :-1]
    frames = torch.full((output.shape[0],), output.shape[1])
    scores = torch.log_softmax(output, -1).transpose(0, 1)
    return F.ctc_loss(
        scores, rows, frames, told.to(torch.int64).sum(1), blank=blank, reduction="none", zero_infinity=True
    )


def _frames(folder: ModelFolder, samples: int) -> int:
    """How many outputs a sound gives."""
    for kernel, stride in zip(folder.config.conv_kernel, folder.config.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


def _samples(folder: ModelFolder, shape: Shape) -> Tensor:
    """Random sounds float32 [batch, length], long enough to give a frame."""
    length, least = shape.length or SAMPLES, 1
    for kernel, stride in reversed([*zip(folder.config.conv_kernel, folder.config.conv_stride, strict=True)]):
        least = (least - 1) * stride + kernel
    if length < least:
        raise ConfigError(
            f"{folder.name} hears nothing in {length} samples: a frame has {least}",
            mend=f"--length {least} or more",
        )
    return torch.randn(shape.batch, length, generator=_draw())


def _spectrograms(folder: ModelFolder, count: int) -> dict[str, Tensor]:
    """As Whisper reads them: two of its frames become a position."""
    most = getattr(folder.config, "max_source_positions", None)
    if not isinstance(most, int):
        raise ConfigError(
            f"{folder.name}: {folder.architecture} takes spectrograms of any length, and a program takes one",
            mend="write a function that returns a Deployment around the model: pfl-export my_model.py:build",
        )
    return {"input_features": torch.randn(count, folder.config.num_mel_bins, 2 * most, generator=_draw())}


def _reads(folder: ModelFolder, name: str) -> None:
    found = folder.made.main_input_name
    if found != name:
        raise ConfigError(
            f"{folder.name}: {folder.architecture} takes {found}, which has no task here",
            mend="write a function that returns a Deployment around the model: pfl-export my_model.py:build",
        )


#: What an architecture is for, by the end of its name.
KINDS: dict[str, Callable[[ModelFolder, Shape], Family]] = {
    "ForCausalLM": _language,
    "LMHeadModel": _language,
    "ForSequenceClassification": _sentences,
    "ForTokenClassification": _tags,
    "ForConditionalGeneration": _written,
    "MTModel": _written,
    "ForImageClassification": _pictures,
    "ForAudioClassification": _sounds,
    "ForCTC": _speech,
}
