"""Group commit: requests that wait for the database are written in one transaction, by one of their threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Together(Generic[Item, Result]):
    """Collects what threads ask for while one of them is busy with what was asked for before.

    A transaction costs a flush of the disk, whatever is in it. So with n threads that each wait for one, taking turns,
    the last waits for n flushes; together they wait for two.

    Args:
        work: does several at once: for each item its result, or the error that is raised where it was asked for. What
            ``work`` itself raises is raised for all of them.
        most: items at once.
    """

    def __init__(
        self, work: Callable[[Sequence[Item]], Sequence[Result | Exception]], most: int = 64
    ) -> None:
        self._work, self._most = work, most
        self._turn, self._lock = threading.Lock(), threading.Lock()
        self._waiting: list[_Entry[Item, Result]] = []

    def do(self, item: Item) -> Result:
        """The result for one item; blocks until it is there."""
        mine: _Entry[Item, Result] = _Entry(item)
        with self._lock:
            self._waiting.append(mine)
        with self._turn:
            while mine.outcome is None:  # else who had the turn before did it for this thread too
                with self._lock:
                    batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                self._run(batch)
        if isinstance(mine.outcome, Exception):
            raise mine.outcome
        return mine.outcome[0]

    def _run(self, batch: list[_Entry[Item, Result]]) -> None:
        try:
            found = self._work([entry.item for entry in batch])
        except Exception as error:
            for entry in batch:
                entry.outcome = error
            return
        for entry, one in zip(batch, found, strict=True):
            entry.outcome = one if isinstance(one, Exception) else (one,)


class _Entry(Generic[Item, Result]):
    """One item and what became of it."""

    def __init__(self, item: Item) -> None:
        self.item = item
        self.outcome: tuple[Result] | Exception | None = None
