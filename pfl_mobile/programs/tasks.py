"""What a program computes from a model's output: loss, metrics and predictions.

A task names the batch entries it reads. Every example (or token) carries a weight, so padding, partial batches
and importance weights are exact: sums are weighted sums and the caller divides by the weight sum.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from pfl_mobile.errors import ConfigError

Batch = Mapping[str, Tensor]

#: Additive logit of a class that must never be predicted. Finite, so that 0 * mask stays 0 in every engine.
NEVER = -1e9


class Task(ABC):
    """Base of all tasks.

    Attributes:
        inputs: batch entries passed to the model, in order.
        labels: batch entries that the loss reads besides the model's output.
        predict_extra: entries that only ``predict`` takes, besides ``inputs``.
    """

    kind: ClassVar[str]
    inputs: tuple[str, ...] = ("x",)
    labels: tuple[str, ...] = ("labels",)
    predict_extra: tuple[str, ...] = ()

    @abstractmethod
    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        """Loss of each weighted element: the shape of ``batch["weight"]``."""

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Metric values of each weighted element, float32, the shape of ``batch["weight"]``."""
        return {}

    @abstractmethod
    def predict(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """What ``predict`` returns for the model's output."""

    def manifest(self) -> dict[str, object]:
        """Entry of the manifest: kind, metric names, number of classes."""
        return {"kind": self.kind, "metrics": [], "vocabulary": None}


def _check_logits(task: str, output: Tensor, axes: str, classes: int) -> None:
    """Raises ConfigError when the model's output is not ``[axes..., classes]``: manifest and metrics rely on it."""
    if output.dim() != len(axes) + 1 or output.shape[-1] != classes:
        raise ConfigError(
            f"the model's output is {list(output.shape)}, a {task} task of {classes} classes needs "
            f"[{', '.join(axes)}, {classes}]",
            mend="correct the number of classes of the task (vocabulary slots count), or the model's last layer",
        )


def _check_labels(task: str, labels: Tensor, axes: str, classes: int) -> None:
    """Raises ConfigError when labels are not classes int64 ``[axes...]``; the loss alone would take others too."""
    if labels.dtype == torch.int64 and labels.dim() == len(axes):
        return
    mend = f"give whole numbers [{', '.join(axes)}]: labels.astype(np.int64)"
    if labels.dim() == len(axes) + 1:
        last = labels.shape[-1]
        if last == classes:
            mend = "one-hot labels are the classes labels.argmax(-1); for several yes and no in a row give a CustomTask"
        elif last == 1:
            mend = "give labels of one axis less: labels.squeeze(-1).astype(np.int64)"
    raise ConfigError(
        f"labels are {str(labels.dtype).removeprefix('torch.')} {list(labels.shape)}, a {task} task takes int64 "
        f"[{', '.join(axes)}]",
        mend=mend,
    )


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each label, float32 of the labels' shape: [B] or [B, T]."""
    if labels.dim() == 1:
        return F.cross_entropy(logits, labels, reduction="none")
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").reshape(labels.shape)


def _hits(scores: Tensor, labels: Tensor, ks: tuple[int, ...]) -> dict[str, Tensor]:
    """Top-k hits from the label's rank. Ties count for the label, so equal scores never lose a hit.

    "Greater" is written as a clamp of the hugely scaled difference: float32 scores that differ do so by far more
    than 1e-30, and phones clamp a vocabulary of scores many times faster than they compare and convert it.
    """
    own = torch.gather(scores, -1, labels.unsqueeze(-1))
    rank = torch.clamp((scores - own) * 1e30, 0.0, 1.0).sum(-1)
    return {f"top{k}": (rank < k).to(torch.float32) for k in ks}


@dataclass(frozen=True)
class TokenTask(Task):
    """Next-token prediction: one label for every position of every sequence.

    Batch: ``tokens`` int64 [B, T], ``labels`` int64 [B, T], ``weight`` float32 [B, T]. The model returns logits
    [B, T, V]. ``predict`` takes ``tokens`` [1, T] and ``position`` int64 [1], the index of the last known token.

    Args:
        vocabulary: number of classes V, vocabulary slots included.
        specials: the first ids that are never suggested (padding, start, unknown, end). A label among them counts
            as a miss: no keyboard can suggest a word that it does not know.
        top_k: number of suggestions that ``predict`` returns.
        never: further ids that are never suggested, as ranges ``(first, behind the last)``: those of a tokenizer whose
            special tokens stand elsewhere, or that has fewer ids than the model.
    """

    vocabulary: int
    specials: int = 4
    top_k: int = 3
    kind: ClassVar[str] = "tokens"
    inputs: tuple[str, ...] = ("tokens",)
    predict_extra: tuple[str, ...] = ("position",)
    never: tuple[tuple[int, int], ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        for first, behind in self.never:
            if not self.specials <= first < behind <= self.vocabulary:
                raise ConfigError(
                    f"the ids from {first} to {behind} are no range of a vocabulary of {self.vocabulary} behind "
                    f"{self.specials} specials",
                    mend="give ranges (first, behind the last) of ids that are not suggested",
                )
        if not 0 <= self.specials < self.vocabulary:
            raise ConfigError(
                f"{self.specials} special ids do not fit a vocabulary of {self.vocabulary}",
                mend="choose 0 <= specials < vocabulary",
            )
        most = self.vocabulary - self.specials - sum(behind - first for first, behind in self.never)
        if not 1 <= self.top_k <= most:
            raise ConfigError(f"top_k={self.top_k} is not in 1..{most}", mend="lower top_k")
        if self.never and most < 3:  # a label among them would be one of the best three
            raise ConfigError(f"only {most} ids can be suggested", mend="leave 3 or more out of never")

    @override
    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of each position, float32 [B, T]."""
        labels = batch["labels"]
        _check_logits(self.kind, output, "BT", self.vocabulary)
        _check_labels(self.kind, labels, "BT", self.vocabulary)
        return _cross_entropy(output, labels)

    def _suggestable(self, logits: Tensor) -> Tensor:
        mask = torch.zeros(self.vocabulary)
        mask[: self.specials] = NEVER
        for first, behind in self.never:
            mask[first:behind] = NEVER
        return logits + mask

    @override
    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """``top1`` and ``top3`` hits, float32 [B, T]."""
        labels = batch["labels"]
        known = (labels >= self.specials).to(torch.float32)
        hits = _hits(self._suggestable(output), labels, (1, 3))
        return {name: hit * known for name, hit in hits.items()}

    @override
    def predict(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """``top_ids`` int64 [B, K] and ``top_probs`` float32 [B, K], the likeliest first."""
        index = batch["position"].reshape(-1, 1, 1).expand(output.shape[0], 1, output.shape[2])
        last = torch.gather(output, 1, index).squeeze(1)
        probs, ids = torch.topk(torch.softmax(self._suggestable(last), -1), self.top_k)
        return {"top_ids": ids, "top_probs": probs}

    @override
    def manifest(self) -> dict[str, object]:
        return {"kind": self.kind, "metrics": ["top1", "top3"], "vocabulary": self.vocabulary}


@dataclass(frozen=True)
class ClassificationTask(Task):
    """One class for each example: logits [B, C], ``labels`` int64 [B], ``weight`` float32 [B].

    With ``per_token`` one for each token of each example: logits [B, T, C], labels and weight [B, T]; ``predict``
    gives [B, T, K].
    """

    classes: int
    top_k: int = 1
    inputs: tuple[str, ...] = ("x",)
    per_token: bool = field(default=False, kw_only=True)
    kind: ClassVar[str] = "classification"

    def __post_init__(self) -> None:
        """Check the numbers (ConfigError)."""
        if self.classes < 2:
            raise ConfigError(f"{self.classes} classes are too few", mend="give 2 or more")
        if not 1 <= self.top_k <= self.classes:
            raise ConfigError(f"top_k={self.top_k} is not in 1..{self.classes}", mend="lower top_k")

    @override
    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of each example, float32 [B], or of each token, [B, T]."""
        labels, axes = batch["labels"], "BT" if self.per_token else "B"
        _check_logits(self.kind, output, axes, self.classes)
        _check_labels(self.kind, labels, axes, self.classes)
        return _cross_entropy(output, labels)

    @override
    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """``top1`` hits, float32, of the shape of the labels."""
        return _hits(output, batch["labels"], (1,))

    @override
    def predict(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """``top_ids`` int64 [B, K] and ``top_probs`` float32 [B, K], the likeliest first."""
        probs, ids = torch.topk(torch.softmax(output, -1), self.top_k)
        return {"top_ids": ids, "top_probs": probs}

    @override
    def manifest(self) -> dict[str, object]:
        return {"kind": self.kind, "metrics": ["top1"], "vocabulary": self.classes}


@dataclass(frozen=True)
class RegressionTask(Task):
    """Real values: output and ``labels`` float32 [B, ...] of one shape, ``weight`` float32 [B]."""

    inputs: tuple[str, ...] = ("x",)
    kind: ClassVar[str] = "regression"

    @override
    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        """Squared error of each example, averaged over its values, float32 [B]."""
        error = self._difference(output, batch)
        return (error * error).mean(-1)

    @override
    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """``mae``: mean absolute error of each example, float32 [B]."""
        return {"mae": self._difference(output, batch).abs().mean(-1)}

    @staticmethod
    def _difference(output: Tensor, batch: Batch) -> Tensor:
        labels = batch["labels"]
        if output.shape != labels.shape:  # [B, 1] - [B] would be all pairs
            raise ConfigError(
                f"the model's output is {list(output.shape)}, the labels are {list(labels.shape)}",
                mend=f"give labels of the output's shape: labels.reshape({list(output.shape)})",
            )
        return (output - labels).reshape(output.shape[0], -1)

    @override
    def predict(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """``value``: the model's output."""
        return {"value": output}

    @override
    def manifest(self) -> dict[str, object]:
        return {"kind": self.kind, "metrics": ["mae"], "vocabulary": None}


@dataclass(frozen=True)
class CustomTask(Task):
    """A user's own loss.

    Args:
        loss: ``(output, batch) -> Tensor`` of the shape of ``batch["weight"]``, in PyTorch operators.
        inputs: batch entries passed to the model.
        labels: other batch entries that the loss reads.
        prediction: ``(output, batch) -> {name: Tensor}``; the default returns the output as ``value``.
    """

    loss: Callable[[Tensor, Batch], Tensor]
    inputs: tuple[str, ...] = ("x",)
    labels: tuple[str, ...] = ("labels",)
    prediction: Callable[[Tensor, Batch], dict[str, Tensor]] | None = None
    kind: ClassVar[str] = "custom"

    @override
    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        return self.loss(output, batch)

    @override
    def predict(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The user's prediction, or the output as ``value``."""
        return self.prediction(output, batch) if self.prediction else {"value": output}


@dataclass(frozen=True)
class TiltedTask(Task):
    """Another task with tilted examples (Li 2021, TERM, arXiv 2007.01162); made by :func:`tilted_task`.

    The mean loss of a batch is what it was, so losses stay comparable; its gradient becomes that of

        (1/t) log(sum_i w_i exp(t l_i) / sum_i w_i),

    the mean of the examples' gradients with the weights w_i exp(t l_i) (the paper's lemma 1), which enter as
    constants. The losses of a batch are not independent of each other: tilting is within the batch, as in the
    paper's batch solver; batches whose gradients are added for one step are tilted one by one.
    """

    task: Task
    t: float

    def __post_init__(self) -> None:
        """Take over what the task reads (ConfigError for a tilt that is not finite)."""
        if not math.isfinite(self.t):
            raise ConfigError(f"tilt {self.t!r} is not a finite number", mend="give for instance t=1.0")
        for name in ("kind", "inputs", "labels", "predict_extra"):
            object.__setattr__(self, name, getattr(self.task, name))

    @property
    def specials(self) -> int:
        """How many of the first classes the task never predicts."""
        return int(getattr(self.task, "specials", 0))

    @override
    def losses(self, output: Tensor, batch: Batch) -> Tensor:
        """The task's losses; their gradients are scaled by exp(t l_i) over the batch's mean of it."""
        losses = self.task.losses(output, batch)
        weight, fixed = batch["weight"], losses.detach()
        exponent = torch.where(weight > 0, self.t * fixed, torch.full_like(fixed, NEVER))
        tilt = torch.exp(exponent - exponent.reshape(-1).amax(0))
        # The largest tilt is 1, so the sum is only small where nothing counts.
        scale = tilt * (weight.sum() / torch.clamp((weight * tilt).sum(), min=1e-30))
        return fixed + scale * (losses - fixed)

    @override
    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        return self.task.metrics(output, batch)

    @override
    def predict(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        return self.task.predict(output, batch)

    @override
    def manifest(self) -> dict[str, object]:
        return self.task.manifest()


def tilted_task(task: Task, t: float) -> Task:
    """The task with examples tilted by ``t``: above 0 hard examples count more (at large t only the hardest), below
    0 less (outliers are ignored); 0 is the task itself.

    Raises:
        ConfigError: t is not finite.
    """
    return task if t == 0 else TiltedTask(task, t)
