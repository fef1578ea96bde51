"""What labels and outputs say about the task; where they could mean several, an error names the choices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import override

from pfl_mobile.data.user_rows import rename_to_labels
from pfl_mobile.errors import ConfigError, DataError
from pfl_mobile.programs.tasks import ClassificationTask, RegressionTask, Task, TokenTask

if TYPE_CHECKING:
    from pfl_mobile.data.populations import Population
    from pfl_mobile.rows import Rows

#: Users whose labels are looked at: of those in memory, and of others where the first user's are all the same.
_IN_MEMORY, _OTHERS = 1000, 20

#: Losses of one's own, for what has no task of ours.
_BCE = (
    "CustomTask(bce) with def bce(output, batch): return F.binary_cross_entropy_with_logits(output, batch['labels'], "
    "reduction='none').reshape(len(output), -1).mean(1)"
)
_SOFT = (
    "CustomTask(soft) with def soft(output, batch): "
    "return F.cross_entropy(output, batch['labels'], reduction='none')"
)


@dataclass(frozen=True)
class LabelFacts:
    """What the values of labels are like.

    Attributes:
        least, most: the smallest and the largest; None without labels.
        whole: all are whole numbers.
        few: the different values where there are at most two whole ones, else empty.
        shares: each row is made of numbers from 0 up that add up to 1.
    """

    least: float | None = None
    most: float | None = None
    whole: bool = True
    few: tuple[float, ...] = ()
    shares: bool = True

    @classmethod
    def of(cls, users: Iterable[np.ndarray]) -> LabelFacts:
        """The facts of all users' labels together."""
        least, most, whole, shares = np.inf, -np.inf, True, True
        values: set[float] = set()
        for labels in users:
            if not labels.size:
                continue
            least, most = min(least, float(labels.min())), max(most, float(labels.max()))
            whole = whole and bool((labels == np.floor(labels)).all() if labels.dtype.kind == "f" else True)
            if whole and len(values) <= 2:
                values |= {float(value) for value in np.unique(labels)[:3]}
            rows = labels.reshape(len(labels), -1).astype(np.float64)
            shares = shares and bool((rows >= 0).all() and (np.abs(rows.sum(1) - 1) < 1e-3).all())
        if least > most:
            return cls()
        return cls(least, most, whole, tuple(sorted(values)) if whole and len(values) <= 2 else (), shares)

    @property
    def two_valued(self) -> bool:
        """Nothing but 0 and 1, or two whole numbers: a yes or no, written as numbers."""
        return len(self.few) == 2

    @override
    def __str__(self) -> str:
        """The range of the values."""
        if self.least is None or self.most is None:
            return "without values"
        if self.few:
            return f"with nothing but {' and '.join(f'{value:g}' for value in self.few)}"
        kind = "whole numbers" if self.whole else "numbers"
        return f"with {kind} from {self.least:g} to {self.most:g}"


def task_of(
    inputs: Sequence[str],
    labels: tuple[str, Sequence[int]],
    output: Sequence[int],
    facts: LabelFacts,
    specials: int,
) -> tuple[Task, str]:
    """The task and why it is the one.

    Args:
        inputs: names of the arrays that the model takes.
        labels: dtype and shape of a batch of labels.
        output: shape of what the model gives for the batch.
        facts: of the values of all labels that were looked at.
        specials: as for ``infer_task``.

    Raises:
        ConfigError: the labels fit no task, or several.
    """
    dtype, shape = labels
    said = f"labels are {dtype} {_rows(shape)} {facts}; the model gives {_rows(output)}"
    if dtype == "int64":
        return _of_whole(inputs, shape, output, facts, specials, said), said
    if dtype == "float32":
        return _of_real(inputs, shape, output, facts, said), said
    change = (
        "labels.astype(np.int64) for classes, one output for each" if dtype == "bool" else "float32 or int64"
    )
    if dtype == "bool" and _one(output):
        change = f"labels.astype(np.float32).reshape({_reshaped(output)}) and task={_BCE}; or {change}"
    raise _unfit(said, f"give {change}")


def _of_whole(
    inputs: Sequence[str],
    shape: Sequence[int],
    output: Sequence[int],
    facts: LabelFacts,
    specials: int,
    said: str,
) -> Task:
    if len(output) == len(shape) + 1 and len(shape) == 1 and output[-1] > 1:
        classes = output[-1]
        if facts.least is not None and facts.least >= 1 and facts.most == classes:
            raise ConfigError(
                f"{said}, classes 0..{classes - 1}: these labels seem to be counted from 1",
                mend=f"give labels - 1; or, if 0 is a class too, a model of {classes + 1} outputs",
            )
        return ClassificationTask(classes, inputs=tuple(inputs))
    if len(output) == 3 and tuple(output[:2]) == tuple(shape):
        vocabulary = output[-1]
        if tuple(inputs) == ("tokens",):
            return TokenTask(vocabulary, specials=specials, top_k=min(3, vocabulary - specials))
        raise _unfit(
            f"{said}, a class for each position",
            f"for next tokens give task=TokenTask({vocabulary}, specials=0, inputs={tuple(inputs)!r}), or call the "
            "input 'tokens'; for other classes task=CustomTask(loss), with weights of the labels' shape",
        )
    if tuple(shape) == tuple(output) and len(shape) == 2 and shape[1] > 1:
        if facts.shares and set(facts.few) <= {0.0, 1.0}:
            raise _unfit(
                f"{said}: one-hot classes", f"give labels.argmax(1) for ClassificationTask({shape[1]})"
            )
        if set(facts.few) <= {0.0, 1.0}:
            raise _unfit(
                f"{said}: several yes or no in a row", f"give labels.astype(np.float32) and task={_BCE}"
            )
    if len(shape) == 2 and shape[1] == 1 and len(output) == 2 and output[1] > 1:
        raise _unfit(said, f"for ClassificationTask({output[1]}) give labels of one axis: labels.reshape(-1)")
    if _size(shape) == _size(output):
        real = f"labels.astype(np.float32).reshape({_reshaped(output)})"
        if facts.two_valued and _one(output):
            raise _unfit(
                f"{said}: two classes and one output",
                f"give the model two outputs, for ClassificationTask(2) with labels 0 and 1; or {real} and task={_BCE}",
            )
        raise _unfit(
            said,
            f"for real values give {real}, for RegressionTask(); for classes give the model an output for each",
        )
    raise _unfit(said, "give labels [rows] for classes; or task=, for instance CustomTask(loss)")


def _of_real(
    inputs: Sequence[str], shape: Sequence[int], output: Sequence[int], facts: LabelFacts, said: str
) -> Task:
    same = tuple(shape) == tuple(output)
    if _size(shape) == _size(output):
        reshaped = "" if same else f"labels.reshape({_reshaped(output)}), with "
        real = f"for real values {reshaped}task=RegressionTask(inputs={tuple(inputs)!r})"
        several = len(output) == 2 and output[1] > 1
        if several and facts.shares and facts.least is not None:
            way = f"labels.argmax(1) for ClassificationTask({output[1]})"
            if facts.few:
                raise _ambiguous(f"{said}: one-hot classes, or real values", f"for classes {way}", real)
            soft = f"for shares of classes task={_SOFT}, or {way}"
            raise _ambiguous(f"{said} that add up to 1: shares of classes, or real values", soft, real)
        if facts.two_valued:
            names = "" if set(facts.few) <= {0.0, 1.0} else " (labels 0 and 1)"
            yes_no = f"for yes and no {reshaped}task={_BCE}{names}"
            if not several:
                yes_no += (
                    "; or two outputs and labels.astype(np.int64).reshape(-1), for ClassificationTask(2)"
                )
            raise _ambiguous(f"{said}: yes and no, or real values", yes_no, real)
        if same:
            return RegressionTask(inputs=tuple(inputs))
        raise _unfit(
            said, f"give every user labels of the output's shape: labels.reshape({_reshaped(output)})"
        )
    if facts.whole and _size(shape) == (output[0] if output else None) and len(output) == 2:
        raise _unfit(
            f"{said}, classes written as real numbers",
            f"for ClassificationTask({output[1]}) give whole numbers: labels.reshape(-1).astype(np.int64)",
        )
    raise _unfit(
        said,
        f"for real values give labels {_rows(output)} and RegressionTask(); or task=, for instance CustomTask(loss)",
    )


def _ambiguous(what: str, *choices: str) -> ConfigError:
    return ConfigError(f"{what}; which of them is not told", mend="; or ".join(choices))


def _unfit(what: str, mend: str) -> ConfigError:
    return ConfigError(f"{what}; this fits no known task", mend=mend)


def _rows(shape: Sequence[int]) -> str:
    return f"[{', '.join(['rows', *map(str, shape[1:])])}]" if shape else "[]"


def _reshaped(output: Sequence[int]) -> str:
    return ", ".join(["-1", *map(str, output[1:])])


def _size(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _one(output: Sequence[int]) -> bool:
    """Whether there is one output for each row."""
    return len(output) > 0 and _size(output) == output[0]


def labels_seen(data: Population, rows: Rows) -> Iterator[np.ndarray]:
    """Training labels of the users in memory, else those of ``rows``, a user's; of more users where they are constant.

    Raises:
        ConfigError: the rows have no labels.
    """
    if "labels" not in rows:
        raise ConfigError(f"the rows have {sorted(rows)} but no 'labels'", mend=rename_to_labels(rows))
    parts = getattr(data, "parts", None)
    if isinstance(parts, tuple):
        yield from (train["labels"] for train, _ in parts[:_IN_MEMORY] if "labels" in train)
        return
    first = rows["labels"]
    yield first
    if first.dtype.kind != "f" or not first.size or (first != first.flat[0]).any():
        return
    for index in range(min(len(data), _OTHERS)):
        try:
            yield data.train(index).get("labels", first)
        except DataError:  # told as that user's failure in a round
            continue
