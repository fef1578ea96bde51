"""Messages of made-up users, split."""

from __future__ import annotations

import pytest

from pfl_mobile.data import Message, Split, UserText, split


def people(users: int = 6, messages: int = 30) -> UserText:
    """Everybody writes "see you at the NAME"; each user has a place of their own."""
    lines = [
        (f"u{u}", Message(f"see you at the place{u} {i % 3} !"))
        for u in range(users)
        for i in range(messages)
    ]
    # Numbers make the texts of one user differ.
    lines = [(u, Message(f"{m.text} {i}")) for i, (u, m) in enumerate(lines)]
    return UserText.collect("people", lines)


@pytest.fixture(scope="module")
def parts() -> Split:
    return split(people(), test_users=2, min_messages=10)
