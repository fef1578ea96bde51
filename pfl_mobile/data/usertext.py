"""Messages by user: the one form in which every text dataset is handed on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from pfl_mobile.errors import UnknownNameError, near


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it was typed.

    Args:
        text: the message, never empty after stripping.
        time: seconds since 1970-01-01 UTC, or None where the source does not say.
    """

    text: str
    time: float | None = None


class Left(NamedTuple):
    """Messages that were left out: why, and whose (None: nobody's in particular)."""

    reason: str
    user: str | None


#: Why messages are left out, and what is said of so many of them.
REASONS = {
    "blank_line": "blank (lines of the file)",
    "empty": "without text",
    "repeated": "repeated by the same user",
    "no_writer": "of an unknown writer",
    "older": "older than the newest that are kept",
}


def said_left_out(counts: Mapping[str, int]) -> str:
    """Counts by reason in words."""
    return ", ".join(f"{count} {REASONS.get(reason, reason)}" for reason, count in counts.items())


@dataclass(frozen=True)
class UserText:
    """Users and their messages, in time order where the time is known.

    Args:
        name: of the dataset, or the path of the file it was read from.
        users: user id to that user's messages; ids are sorted, no user is empty.
        left_out: how many messages of the source are not among them, by reason (:data:`REASONS`) and user; None where
            nobody counted.
    """

    name: str
    users: Mapping[str, tuple[Message, ...]] = field(repr=False)
    left_out: Mapping[Left, int] | None = field(default_factory=dict, repr=False)

    @classmethod
    def collect(
        cls, name: str, lines: Iterable[tuple[str | None, Message]], *, unique: bool = False
    ) -> UserText:
        """Group ``(user, message)`` pairs and order them by time.

        Messages without a time come first and keep the order of the source. Texts are stripped; those that are empty
        then, and those of nobody (user None), are left out and counted.

        Args:
            name: of the dataset.
            lines: the pairs.
            unique: of equal texts of a user only the first stays, for a source that holds messages more than once.
        """
        left: Counter[Left] = Counter()
        grouped: dict[str, list[Message]] = {}
        for user, message in lines:
            text = message.text.strip()
            if user is None or not text:
                left[Left("no_writer" if user is None else "empty", user)] += 1
            else:
                grouped.setdefault(user, []).append(Message(text, message.time))
        users: dict[str, tuple[Message, ...]] = {}
        for user in sorted(grouped):
            ordered = sorted(grouped[user], key=lambda m: float("-inf") if m.time is None else m.time)
            first: dict[str, Message] = {}
            for message in ordered:
                first.setdefault(message.text, message)
            users[user] = tuple(first.values() if unique else ordered)
            if len(users[user]) < len(ordered):
                left[Left("repeated", user)] += len(ordered) - len(users[user])
        return cls(name, users, dict(left))

    def newest(self, most: int | None) -> UserText:
        """The same dataset with only the newest messages of each user, ``most`` at most (None: all)."""
        if most is None:
            return self
        older = {Left("older", u): len(m) - most for u, m in self.users.items() if len(m) > most}
        return UserText(self.name, {u: m[-most:] for u, m in self.users.items()}, self._with(older))

    def leaving_out(self, more: Mapping[Left, int]) -> UserText:
        """The same dataset, with more that was left out of the source."""
        return replace(self, left_out=self._with({key: n for key, n in more.items() if n}))

    def _with(self, more: Mapping[Left, int]) -> Mapping[Left, int] | None:
        return None if self.left_out is None else dict(Counter(self.left_out) + Counter(more))

    def counts_left_out(self, user: str | None = None) -> dict[str, int] | None:
        """How many messages were left out by reason, of all users or of one; None where nobody counted."""
        if self.left_out is None:
            return None
        found: Counter[str] = Counter()
        for left, count in self.left_out.items():
            if user is None or left.user == user:
                found[left.reason] += count
        return {reason: found[reason] for reason in REASONS if found[reason]}

    def words_left_out(self, user: str | None = None) -> str:
        """The same in words, for instance ``left out: 3 without text``; empty where nothing was."""
        counts = self.counts_left_out(user)
        return f"left out: {said_left_out(counts)}" if counts else ""

    @property
    def messages(self) -> int:
        """Number of messages of all users."""
        return sum(len(m) for m in self.users.values())

    def texts(self, user: str) -> list[str]:
        """The texts of one user, oldest first.

        Raises:
            UnknownNameError: there is no such user.
        """
        if user not in self.users:
            raise UnknownNameError(f"{self.name} has no user {user!r}", mend=near(user, self.users))
        return [m.text for m in self.users[user]]

    def all_texts(self) -> Iterator[str]:
        """Every text, user by user."""
        for messages in self.users.values():
            for message in messages:
                yield message.text

    def select(self, users: Sequence[str]) -> UserText:
        """The same dataset with only these users."""
        wanted = set(users)
        for user in wanted:
            if user not in self.users:
                raise UnknownNameError(f"{self.name} has no user {user!r}", mend=near(user, self.users))
        left = self.left_out
        if left is not None:
            left = {key: count for key, count in left.items() if key.user is None or key.user in wanted}
        return UserText(self.name, {u: m for u, m in self.users.items() if u in wanted}, left)

    def summary(self) -> dict[str, str | int]:
        """Name and sizes, for a table or JSON."""
        return {
            "dataset": self.name,
            "users": len(self.users),
            "messages": self.messages,
            "users_with_100_messages": sum(len(m) >= 100 for m in self.users.values()),
        }
