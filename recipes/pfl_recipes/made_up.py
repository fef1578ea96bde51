"""Random users with the shapes of a recipe's data: to try that a project runs where the data is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pfl_mobile.data import ArrayPopulation, UserText

    from . import Recipe

#: How many users there are, and examples or messages of each.
USERS, EXAMPLES, MESSAGES = 4, 40, 110


def population(recipe: Recipe) -> ArrayPopulation:
    """Users with random numbers; their labels follow from the first input, so that something can be learned."""
    from pfl_mobile.data import ArrayPopulation, quartiles

    users: dict[str, dict[str, np.ndarray]] = {}
    for index in range(USERS):
        draw = np.random.default_rng(index)
        rows: dict[str, np.ndarray] = {}
        for name, shape in recipe.inputs.items():
            if isinstance(shape, int):
                rows[name] = draw.integers(0, shape, EXAMPLES)
            else:
                rows[name] = draw.normal(size=(EXAMPLES, *shape)).astype(np.float32)
        signal = rows["x"].reshape(EXAMPLES, -1)[:, 0]
        if recipe.classes is None:
            rows["labels"] = signal[:, None]
        else:
            rows["labels"] = (np.abs(signal) * recipe.classes).astype(np.int64) % recipe.classes
        rows["weight"] = np.ones(EXAMPLES, np.float32)
        users[f"user-{index}"] = rows
    return ArrayPopulation.of("made-up", users, groups=quartiles(range(USERS)))


def messages() -> UserText:
    """Users with messages of few words: as many as above are held out, the backbone learns from one more."""
    from pfl_mobile.data import Message, UserText

    words = ["see", "you", "there", "at", "home", "soon", "thanks", "ok", "later", "today"]
    users = {}
    for index in range(2 * USERS + 1):
        draw = np.random.default_rng(index)
        texts = (" ".join(draw.choice(words, 6)) for _ in range(MESSAGES))
        users[f"user-{index}"] = tuple(Message(text) for text in texts)
    return UserText("made-up", users)
