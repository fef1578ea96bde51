"""Messages by user: the one form in which every text dataset is handed on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class UserText:
    """Users and their messages, in time order where the time is known.

    Args:
        name: of the dataset, or the path of the file it was read from.
        users: user id to that user's messages; ids are sorted, no user is empty.
    """

    name: str
    users: Mapping[str, tuple[Message, ...]] = field(repr=False)

    @classmethod
    def collect(cls, name: str, lines: Iterable[tuple[str, Message]]) -> UserText:
        """Group ``(user, message)`` pairs, order them by time and drop a user's exact duplicates.

        Messages without a time come first and keep the order of the source; of two equal texts the
        earlier one stays. Texts are stripped, empty ones left out.
        """
        grouped: dict[str, list[Message]] = {}
        for user, message in lines:
            text = message.text.strip()
            if text:
                grouped.setdefault(user, []).append(Message(text, message.time))
        users: dict[str, tuple[Message, ...]] = {}
        for user in sorted(grouped):
            ordered = sorted(grouped[user], key=lambda m: float("-inf") if m.time is None else m.time)
            first: dict[str, Message] = {}
            for message in ordered:
                first.setdefault(message.text, message)
            users[user] = tuple(first.values())
        return cls(name, users)

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
        return UserText(self.name, {u: m for u, m in self.users.items() if u in wanted})

    def summary(self) -> dict[str, str | int]:
        """Name and sizes, for a table or JSON."""
        return {
            "dataset": self.name,
            "users": len(self.users),
            "messages": self.messages,
            "users_with_100_messages": sum(len(m) >= 100 for m in self.users.values()),
        }
