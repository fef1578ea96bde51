"""Which users are held out, and which part of a held-out user's messages is learned from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from pfl_mobile.data.registry import DATASETS, Dataset
from pfl_mobile.data.usertext import UserText
from pfl_mobile.errors import ConfigError, DataError
from pfl_mobile.rows import UserSplit, split_texts


@dataclass(frozen=True)
class Split:
    """Users for the backbone and users it never sees.

    Args:
        train: the users whose messages train the backbone, all their messages.
        test: held-out users by id.
    """

    train: UserText
    test: dict[str, UserSplit]


def split(
    dataset: UserText,
    *,
    test_users: int | None = None,
    min_messages: int = 100,
    seed: int = 0,
    fraction: float = 0.8,
) -> Split:
    """Hold out ``test_users`` users that have at least ``min_messages`` messages.

    The choice depends only on the seed and the ids of the users with enough messages (a sha256 of both
    orders them), not on the Python version or the order of the file.

    Args:
        dataset: all users.
        test_users: how many; by default what the dataset suggests, or for a file of one's own the smaller
            of 40 and half of the users with enough messages.
        min_messages: that a test user has at least.
        seed: another seed holds out other users.
        fraction: of a test user's messages that are history.

    Raises:
        DataError: fewer users than asked for have enough messages, or none would be left to train on.
    """
    eligible = [u for u, m in dataset.users.items() if len(m) >= min_messages]
    if test_users is None:
        known = DATASETS.find(dataset.name) if dataset.name in DATASETS else None
        suggested = max(1, min(40, len(eligible) // 2))
        test_users = known.test_users if isinstance(known, Dataset) else suggested
    if test_users < 1 or min_messages < 2:
        raise ConfigError(
            f"test_users={test_users} and min_messages={min_messages}",
            mend="hold out at least 1 user with at least 2 messages",
        )
    if len(eligible) < test_users or len(dataset.users) <= test_users:
        most = max((len(m) for m in dataset.users.values()), default=0)
        words = dataset.words_left_out()
        raise DataError(
            f"{dataset.name}: {test_users} test users are asked for; {len(eligible)} of its "
            f"{len(dataset.users)} users have {min_messages} messages or more, the largest has {most}"
            f"{words and f'; {words}'}",
            mend="ask for fewer test users or fewer messages (min_messages=; on the command line --min-messages, "
            "for `pfl train` --with min_messages=N); one user at least must be left to train on",
        )
    ranked = sorted(eligible, key=lambda u: hashlib.sha256(f"{seed}:{u}".encode()).digest())
    held = sorted(ranked[:test_users])
    train = dataset.select([u for u in dataset.users if u not in set(held)])
    return Split(train, {u: split_texts(dataset.texts(u), fraction) for u in held})
