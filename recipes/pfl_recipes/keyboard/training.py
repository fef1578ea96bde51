"""Training the keyboard's backbone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfl_mobile.errors import ConfigError, DataError
from pfl_mobile.text.specials import SPECIALS

from .model import Keyboard, KeyboardConfig

if TYPE_CHECKING:
    from pfl_mobile.text.encoder import Rows

    from .word_teacher import Expected

#: ``progress(what, fraction)``.
Progress = Callable[[str, float | None], None]

_SPECIALS = len(SPECIALS)


@dataclass(frozen=True)
class TrainConfig:
    """How the backbone is trained: AdamW with a cosine schedule.

    Attributes:
        epochs: passes over the rows.
        batch: rows in a step.
        lr: highest learning rate.
        warmup: share of the steps in which the learning rate rises to ``lr``.
        weight_decay: on matrices only.
        clip: largest L2 norm of the gradient.
        noise: how much of the input is replaced by other words, see :class:`InputNoise`; 0 for none.
        max_steps: stop the schedule there, however many epochs were asked for; None never does.
        teachers: networks that are trained first, as the backbone but with the next seeds and without teachers. The
            mean of their predictions then teaches the backbone beside the text (Hinton 2015, "Distilling the
            knowledge in a neural network"); they are thrown away, so that a device has nothing more to carry.
        teacher_epochs: passes over the rows of each teacher.
        taught: share of the loss that is the cross-entropy to the teachers' mean; the rest is that to the text.
        seed: of the initial weights, the order of the rows and the dropout.
    """

    epochs: int = 6
    batch: int = 32
    lr: float = 3e-3
    warmup: float = 0.05
    weight_decay: float = 0.05
    clip: float = 1.0
    noise: float = 0.0
    max_steps: int | None = None
    teachers: int = 0
    teacher_epochs: int = 6
    taught: float = 0.6
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what concerns the teachers (ConfigError)."""
        if self.teachers < 0:
            raise ConfigError(f"TrainConfig: teachers={self.teachers}", mend="give 0 or more")
        if self.teacher_epochs < 1:
            raise ConfigError(f"TrainConfig: teacher_epochs={self.teacher_epochs}", mend="give 1 or more")
        if not 0.0 <= self.taught <= 1.0:
            raise ConfigError(f"TrainConfig: taught={self.taught}", mend="give a share from 0 to 1")

    def teacher(self, number: int) -> TrainConfig:
        """How teacher ``number`` is trained, counted from 0."""
        return replace(self, epochs=self.teacher_epochs, teachers=0, seed=self.seed + 1 + number)


def counted_rows(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, labels and weights as tensors [R, T], of the rows in which something counts."""
    tokens, labels, weight = (torch.from_numpy(np.asarray(rows[k])) for k in ("tokens", "labels", "weight"))
    counted = (weight > 0).any(-1)
    return tokens[counted], labels[counted], weight[counted]


def mean_loss(output: Callable[[Tensor], Tensor], features: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean cross-entropy; ``output`` turns features [N, d] into logits [N, V]."""
    # Only counted positions go through the output layer, which is most of the work.
    counted = weight > 0
    losses = F.cross_entropy(output(features[counted]), labels[counted], reduction="none")
    return (losses * weight[counted]).sum() / weight[counted].sum()


def taught_loss(logits: Tensor, labels: Tensor, weight: Tensor, predicted: Tensor, taught: float) -> Tensor:
    """Weighted mean of the cross-entropies to labels and to a distribution over the vocabulary.

    Args:
        logits: [N, V].
        labels: int64 [N].
        weight: of each position, float32 [N].
        predicted: what the teachers expect, probabilities [N, V].
        taught: share of the cross-entropy to ``predicted``.
    """
    log_p = F.log_softmax(logits, dim=-1)
    losses = (1.0 - taught) * F.nll_loss(log_p, labels, reduction="none")
    losses = losses - taught * (predicted * log_p).sum(-1)
    return (losses * weight).sum() / weight.sum()


def mean_prediction(models: Sequence[Keyboard], tokens: Tensor, counted: Tensor) -> Tensor:
    """The mean of the models' probabilities [N, V] at the N counted positions of tokens int64 [B, T]."""
    with torch.no_grad():
        found = [torch.softmax(m.output(m.features(tokens)[counted]), dim=-1) for m in models]
    return torch.stack(found).mean(0)


class InputNoise:
    """Kneser-Ney noise on the input (Xie and others 2017, "Data noising as smoothing in neural language models").

    A word u gives way to another one with probability ``share`` * (different words seen after u) / (count of u):
    what follows a rare word says little about it. The other word v is drawn by how many different words it was
    seen after, as in the shortest order of a Kneser-Ney model. Specials stay.
    """

    def __init__(self, tokens: Tensor, labels: Tensor, weight: Tensor, vocabulary: int, share: float) -> None:
        """Count bigrams in rows [R, T]."""
        seen = (weight > 0) & (labels >= _SPECIALS)
        pairs = torch.stack([tokens[seen], labels[seen]])
        count = torch.bincount(pairs[0], minlength=vocabulary)
        different = torch.unique(pairs, dim=1)
        followers = torch.bincount(different[0], minlength=vocabulary)
        self.replaced = share * followers / count.clamp(min=1)
        self.replaced[:_SPECIALS] = 0.0
        self.drawn = torch.bincount(different[1], minlength=vocabulary).float()

    def __call__(self, tokens: Tensor) -> Tensor:
        """Noisy tokens [B, T]; draws from torch's global generator."""
        chosen = torch.rand(tokens.shape) < self.replaced[tokens]
        others = torch.multinomial(self.drawn, tokens.numel(), replacement=True).reshape(tokens.shape)
        return torch.where(chosen, others, tokens)


def train_backbone(
    rows: Rows,
    config: KeyboardConfig | None = None,
    train: TrainConfig | None = None,
    progress: Progress | None = None,
    *,
    expected: Expected | None = None,
) -> Keyboard:
    """A backbone trained on encoded messages; the same rows and seed on one machine give the same weights.

    Encode with ``drop_unknown=False``: a backbone that learned when an unknown word comes gives vocabulary
    slots a useful start, because they begin as the unknown word. The global random state is left as it was.

    Args:
        rows: from :meth:`pfl_mobile.text.encoder.TextEncoder.encode`; rows of weight 0 are left out.
        config: sizes of the model.
        train: how to train it.
        progress: told about every tenth step, with the mean loss of those steps.
        expected: probabilities float16 [N, V] of each label that counts, in the order of the rows, from a teacher of
            another kind in place of ``train.teachers``.

    Returns:
        The model in eval mode.

    Raises:
        DataError: no row counts.
    """
    train = train or TrainConfig()
    weight = counted_rows(rows)[2]
    if not len(weight):
        raise DataError("there is no text to train the keyboard on", mend="give users with messages")
    if expected is not None and train.teachers:
        raise ConfigError(
            f"TrainConfig: teachers={train.teachers} beside expectations",
            mend="set teachers=0, or expected=None",
        )
    if expected is not None and len(expected) != int((weight > 0).sum()):
        raise ConfigError(
            f"{len(expected)} distributions for {int((weight > 0).sum())} labels that count",
            mend="give the expectations of the same messages",
        )
    say = progress or (lambda _what, _fraction: None)
    # Each pass of a teacher and of the backbone counts the same.
    passes = train.teachers * train.teacher_epochs + train.epochs
    models: list[Keyboard] = []
    for number in range(train.teachers):
        what = f"training teacher {number + 1} of {train.teachers} of the backbone"
        first, share = number * train.teacher_epochs / passes, train.teacher_epochs / passes
        models.append(
            _trained(rows, config, train.teacher(number), _Teachers([]), what, _within(say, first, share))
        )
    first = train.teachers * train.teacher_epochs / passes
    teachers = _Teachers(models, expected)
    return _trained(
        rows, config, train, teachers, "training the backbone", _within(say, first, train.epochs / passes)
    )


@dataclass(frozen=True)
class _Teachers:
    """What teaches a network: others of its kind, or what was expected of each label beforehand."""

    models: Sequence[Keyboard]
    expected: Expected | None = None

    def __bool__(self) -> bool:
        return bool(self.models) or self.expected is not None

    def predicted(self, tokens: Tensor, counted: Tensor, places: Tensor) -> Tensor:
        """Probabilities [N, V] at the counted positions of tokens int64 [B, T], whose labels have these places."""
        if self.expected is None:
            return mean_prediction(self.models, tokens, counted)
        return torch.from_numpy(self.expected[places.numpy()]).float()


def _within(say: Progress, first: float, share: float) -> Callable[[str, float], None]:
    """Progress of a part of the work that starts at ``first`` and is ``share`` of it."""
    return lambda what, done: say(what, first + share * done)


def _trained(
    rows: Rows,
    config: KeyboardConfig | None,
    train: TrainConfig,
    teachers: _Teachers,
    what: str,
    say: Callable[[str, float], None],
) -> Keyboard:
    """One network, taught by the rows and by networks that were trained before."""
    tokens, labels, weight = counted_rows(rows)
    counts = weight > 0
    places = torch.where(counts, counts.flatten().cumsum(0).reshape(counts.shape) - 1, -1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(train.seed)
        model = Keyboard(config)
        optimizer = torch.optim.AdamW(
            _decay_groups(model, train.weight_decay), lr=train.lr, betas=(0.9, 0.98)
        )
        steps = train.epochs * math.ceil(len(tokens) / train.batch)
        steps = min(steps, train.max_steps or steps)
        noise = (
            InputNoise(tokens, labels, weight, model.config.vocabulary, train.noise) if train.noise else None
        )
        order, recent = torch.randperm(len(tokens)), 0.0
        model.train()
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = train.lr * _schedule(step / steps, train.warmup)
            if len(order) == 0:
                order = torch.randperm(len(tokens))
            part, order = order[: train.batch], order[train.batch :]
            length = int((weight[part] > 0).any(0).nonzero().max()) + 1  # the rest is padding only
            x, y, w = tokens[part, :length], labels[part, :length], weight[part, :length]
            features, counted = model.features(noise(x) if noise else x), w > 0
            if teachers:
                # Predicted anew each time: to keep it would take positions * vocabulary numbers.
                predicted = teachers.predicted(x, counted, places[part, :length][counted])
                logits = model.output(features[counted])
                loss = taught_loss(logits, y[counted], w[counted], predicted, train.taught)
            else:
                loss = mean_loss(model.output, features, y, w)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), train.clip)
            optimizer.step()
            recent += float(loss.detach()) / 10
            if step % 10 == 9:
                say(f"{what}, loss {recent:.3f}", (step + 1) / steps)
                recent = 0.0
    model.eval()
    return model


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _schedule(done: float, warmup: float) -> float:
    """Factor of the learning rate when a share ``done`` of the steps is over: cosine from 1 to 0.02."""
    rise = min(1.0, (done + 1e-3) / warmup) if warmup else 1.0
    return rise * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * done)))


def recall(model: nn.Module, rows: Rows, batch: int = 64) -> dict[str, float]:
    """``top1`` and ``top3`` recall in percent over the counted labels; unknown labels are misses.

    Args:
        model: gives scores [B, T, V]; a backbone or a personalized model.
        rows: encoded messages.
        batch: rows at a time.
    """
    tokens, labels, weight = counted_rows(rows)
    hits = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        for i in range(0, len(tokens), batch):
            counted = weight[i : i + batch] > 0
            scores = model(tokens[i : i + batch])[counted].clone()
            scores[:, :_SPECIALS] = -torch.inf
            found = scores.topk(3, -1).indices == labels[i : i + batch][counted].unsqueeze(-1)
            hits += torch.stack([found[:, 0].sum(), found.any(-1).sum()])
    top1, top3 = (100.0 * hits / max(float((weight > 0).sum()), 1.0)).tolist()
    return {"top1": top1, "top3": top3}
