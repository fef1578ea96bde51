"""Whether a client's rows are such as the model and the task take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pfl_mobile.data.finite import finite
from pfl_mobile.errors import DataError
from pfl_mobile.rows import Rows, check_rows, outside_classes

if TYPE_CHECKING:
    from pfl_mobile.programs.tasks import Batch, Task


class RowCheck:
    """Whether a client's rows are such as the model and the task take, so that one wrong client stops no round.

    Attributes:
        nothing: rows of which there are none.
    """

    def __init__(self, task: Task, example: Batch) -> None:
        """Rows must be like those of the example."""
        self.nothing = {name: value[:0].numpy() for name, value in example.items()}
        self._like = {name: (value.dtype, value.shape[1:]) for name, value in self.nothing.items()}
        self._labels: tuple[str, ...] = tuple(getattr(task, "labels", ("labels",)))
        self._needed = {"weight", *getattr(task, "inputs", ()), *self._labels}
        classes = task.manifest().get("vocabulary")
        self._classes = classes if isinstance(classes, int) else None

    def check(self, rows: Rows) -> None:
        """Raises DataError."""
        missing = self._needed - rows.keys()
        if missing:
            raise DataError(
                f"the rows have {sorted(rows)} but no {min(missing)!r}", mend=f"give {sorted(self._needed)}"
            )
        known = [name for name in self._like if name in rows]  # no model reads the others
        for name in known:
            value, (dtype, shape) = rows[name], self._like[name]
            if (value.dtype, value.shape[1:]) != (dtype, shape):
                raise DataError(
                    f"the rows of {name!r} are {value.dtype} {list(value.shape)}, those of the first user "
                    f"{dtype} [rows{''.join(f', {size}' for size in shape)}]",
                    mend="give every user the same arrays",
                )
        check_rows(rows)
        for name in known:
            value = rows[name]
            if value.dtype.kind == "f" and not finite(value):
                raise DataError(f"{name!r} has NaN or infinite values", mend="remove these examples")
            if self._classes is not None and name in self._labels and _exceeds(value, self._classes):
                wrong = value[(value < 0) | (value >= self._classes)].flat[0]
                raise DataError(
                    f"{name!r} has the class {wrong}, the model has the classes 0..{self._classes - 1}",
                    mend=outside_classes(int(value.min()), int(value.max()), self._classes),
                )


def _exceeds(labels: np.ndarray, classes: int) -> bool:
    # Seen as unsigned, a negative label is above all others.
    return labels.dtype == np.int64 and labels.size > 0 and int(labels.view(np.uint64).max()) >= classes
