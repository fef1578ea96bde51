"""A pretrained language model that teaches the keyboard: what it expects at each word of the backbone's text.

The model reads a message in subwords; what its last layer says before a word goes through an output layer over the
keyboard's words. LoRA on the model and that layer learn the messages that the backbone learns (Hinton 2015,
"Distilling the knowledge in a neural network"). Then its expectations are written down, one distribution for each
word, and the model is thrown away: a device has nothing more to carry.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfl_mobile.errors import ConfigError, DataError, missing_package
from pfl_mobile.text.encoder import TextEncoder

#: Probabilities float16 [N, V] of each label that counts, in the order of the text.
Expected: TypeAlias = npt.NDArray[np.float16]

#: ``progress(what, fraction)``.
Progress = Callable[[str, float | None], None]

#: Layers of a decoder of Llama's kind that LoRA adapts.
_ADAPTED = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class WordTeacher:
    """A language model and how it learns the keyboard's words.

    Attributes:
        folder: a causal language model with its tokenizer as transformers saves them, or with one ``.gguf`` file.
        epochs: passes over the messages.
        rank: of LoRA.
        lr: peak learning rate of LoRA.
        head_lr: of the layer over words.
        subwords: in a step.
        seed: of the order of the messages and of LoRA.
    """

    folder: str
    epochs: int = 1
    rank: int = 16
    lr: float = 4e-4
    head_lr: float = 1e-3
    subwords: int = 1200
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings (ConfigError)."""
        for name in ("epochs", "rank", "subwords"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"WordTeacher: {name}={getattr(self, name)}", mend=f"give {name} of 1 or more"
                )

    def settings(self) -> dict[str, Any]:
        """All that decides what it expects; the folder by what is in it.

        Raises:
            ConfigError: there is no such folder.
        """
        _check_folder(Path(self.folder))
        found = asdict(self)
        del found["folder"]
        return {**found, "model": _digest(Path(self.folder))}


@dataclass(frozen=True)
class _Message:
    """Subwords, the places before each word, the words' ids."""

    subwords: list[int]
    before: list[int]
    words: list[int]


def expectations(
    teacher: WordTeacher, encoder: TextEncoder, texts: Iterable[str], progress: Progress | None = None
) -> Expected:
    """What the language model expects at each word, after it learned these texts.

    Computed in bfloat16 where the processor multiplies it, a seventh of the time with AMX; in float32 elsewhere.

    Args:
        teacher: the model.
        encoder: of the keyboard, without slot words; its words are what is predicted.
        texts: messages, those that the backbone learns, in its order.
        progress: told about every tenth step.

    Returns:
        A distribution for each word of the texts that the encoder has a place for.

    Raises:
        ConfigError, DataError: the folder has no such model, or the texts no words.
        MissingDependencyError: transformers or peft is not installed.
    """
    say = progress or (lambda _what, _fraction: None)
    say("load the language model that teaches", None)
    language, tokenizer = _load(Path(teacher.folder))
    cut = _Cutter(encoder, tokenizer)
    messages = [message for message in map(cut.message, texts) if message.words]
    if not messages:
        raise DataError("there is no text to teach", mend="give users with messages")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(teacher.seed)
        model = _WordModel(language, teacher, messages, encoder.vocabulary)
        _learn(model, teacher, messages, say)
    return _written_down(model, teacher, messages, say)


class _Cutter:
    """Messages in subwords, word by word, so that the place before each word is known."""

    def __init__(self, encoder: TextEncoder, tokenizer: Any) -> None:
        self._encoder, self._tokenizer = encoder, tokenizer
        self._known: dict[str, list[int]] = {}
        begin = tokenizer.bos_token_id
        self._begin = tokenizer.eos_token_id if begin is None else begin
        if self._begin is None:
            raise ConfigError(
                "the language model's tokenizer has no id for the beginning of a text",
                mend="give a model whose tokenizer has a bos or eos token",
            )

    def message(self, text: str) -> _Message:
        pieces = self._encoder.tokenizer.words(text)
        subwords, before = [self._begin], []
        for place, piece in enumerate(pieces):
            before.append(len(subwords) - 1)
            subwords += self._subwords(piece if place == 0 else f" {piece}")
        return _Message(subwords, before, [self._encoder.id(piece) for piece in pieces])

    def _subwords(self, written: str) -> list[int]:
        if written not in self._known:
            self._known[written] = self._tokenizer.encode(written, add_special_tokens=False)
        return self._known[written]


class _WordModel(nn.Module):
    """Logits over the keyboard's words before each word of a message."""

    def __init__(self, language: Any, teacher: WordTeacher, messages: Sequence[_Message], words: int) -> None:
        from peft import LoraConfig, get_peft_model

        super().__init__()
        present = {name.rpartition(".")[2] for name, _ in language.named_modules()}
        adapted = [name for name in _ADAPTED if name in present] or "all-linear"
        lora = LoraConfig(r=teacher.rank, lora_alpha=2 * teacher.rank, target_modules=adapted)
        self.language = get_peft_model(language, lora)
        self.kind = torch.bfloat16 if _multiplies_bfloat16() else torch.float32
        for parameter in self.language.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(self.kind)
        self.head = nn.Linear(language.config.hidden_size, words)
        # it begins as how often each word is written
        count = torch.bincount(torch.tensor([w for m in messages for w in m.words]), minlength=words) + 0.5
        nn.init.zeros_(self.head.weight)
        self.head.bias.data = torch.log(count / count.sum())

    def forward(self, messages: Sequence[_Message]) -> Tensor:
        """Logits float32 [words of all messages, V]."""
        length = max(len(m.subwords) for m in messages)
        subwords = torch.zeros(len(messages), length, dtype=torch.int64)
        there = torch.zeros(len(messages), length, dtype=torch.int64)
        for row, message in enumerate(messages):
            subwords[row, : len(message.subwords)] = torch.tensor(message.subwords)
            there[row, : len(message.subwords)] = 1
        rows = torch.tensor([row for row, m in enumerate(messages) for _ in m.words])
        before = torch.tensor([place for m in messages for place in m.before])
        with torch.autocast("cpu", self.kind, enabled=self.kind is torch.bfloat16):
            base = self.language.get_base_model().base_model
            found = base(input_ids=subwords, attention_mask=there, use_cache=False).last_hidden_state
            logits: Tensor = self.head(found[rows, before])
        return logits.float()


def _batches(messages: Sequence[_Message], subwords: int, shuffled: random.Random | None) -> list[list[int]]:
    """Places of messages of about one length, so many subwords together."""
    jitter = [0.0 if shuffled is None else 3.0 * shuffled.random() for _ in messages]
    order = sorted(range(len(messages)), key=lambda i: len(messages[i].subwords) + jitter[i])
    found: list[list[int]] = [[]]
    for place in order:
        if found[-1] and (len(found[-1]) + 1) * len(messages[place].subwords) > subwords:
            found.append([])
        found[-1].append(place)
    if shuffled is not None:
        shuffled.shuffle(found)
    return found


def _learn(model: _WordModel, teacher: WordTeacher, messages: Sequence[_Message], say: Progress) -> None:
    """AdamW with a cosine schedule after a hundred steps of warm-up."""
    shuffled = random.Random(teacher.seed)
    batches = [b for _ in range(teacher.epochs) for b in _batches(messages, teacher.subwords, shuffled)]
    lora = [p for p in model.language.parameters() if p.requires_grad]
    groups = [(lora, teacher.lr), (list(model.head.parameters()), teacher.head_lr)]
    optimizer = torch.optim.AdamW(
        [{"params": parameters, "lr": lr} for parameters, lr in groups], betas=(0.9, 0.98)
    )
    recent = 0.0
    model.train()
    for step, batch in enumerate(batches):
        share = min(1.0, (step + 1) / min(100, len(batches)))
        share *= 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * step / len(batches)))
        for group, (_, lr) in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] = lr * share
        chosen = [messages[i] for i in batch]
        loss = F.cross_entropy(model(chosen), torch.tensor([w for m in chosen for w in m.words]))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for parameters, _ in groups for p in parameters], 1.0)
        optimizer.step()
        recent += float(loss.detach()) / 10
        if step % 10 == 9:
            say(f"teaching words to the language model, loss {recent:.3f}", (step + 1) / len(batches))
            recent = 0.0
    model.eval()


def _written_down(
    model: _WordModel, teacher: WordTeacher, messages: Sequence[_Message], say: Progress
) -> Expected:
    """The distributions of all words, message after message."""
    ends = np.cumsum([len(m.words) for m in messages])
    found = np.empty((int(ends[-1]), model.head.out_features), np.float16)
    batches = _batches(messages, teacher.subwords, None)
    with torch.no_grad():
        for done, batch in enumerate(batches):
            say("write down what the language model expects", done / len(batches))
            probabilities = torch.softmax(model([messages[i] for i in batch]), -1).numpy()
            sizes = [len(messages[i].words) for i in batch]
            for place, part in zip(batch, np.split(probabilities, np.cumsum(sizes)[:-1]), strict=True):
                found[ends[place] - len(part) : ends[place]] = part
    return found


def _multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16."""
    found = Path("/proc/cpuinfo")
    return found.exists() and "bf16" in found.read_text()  # amx_bf16, avx512_bf16; bf16 on ARM


def _gguf(folder: Path) -> Path | None:
    found = sorted(folder.glob("*.gguf"))
    return found[0] if len(found) == 1 and not (folder / "config.json").exists() else None


def _load(folder: Path) -> tuple[Any, Any]:
    """The model without its own output layer's use, and its tokenizer."""
    try:
        import peft  # noqa: F401  (wanted once the model is loaded)
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ModuleNotFoundError as error:
        raise missing_package(error, "a language model that teaches") or error from error
    _check_folder(folder)
    file = _gguf(folder)
    options: dict[str, Any] = {} if file is None else {"gguf_file": file.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, **options)
        model = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, **options
        )
    except ImportError as error:
        raise ConfigError(f"{folder} cannot be read: {error}", mend="pip install gguf") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder} holds no causal language model with its tokenizer: {error}",
            mend="give a folder as `save_pretrained` of transformers writes it, model and tokenizer",
        ) from error
    return model, tokenizer


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is no folder",
            mend="give the folder of a causal language model as transformers saves it",
        )


def _digest(folder: Path) -> str:
    """Of names and bytes of a model's files."""
    sha = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        with open(file, "rb") as opened:
            own = hashlib.file_digest(opened, "sha256").hexdigest()
        sha.update(json.dumps([file.relative_to(folder).as_posix(), own]).encode())
    return sha.hexdigest()
