"""The keyboard and the activity recipe, small enough to be exported and trained in a test.

Backbones, modules and plans are the recipes' own; the keyboard has fewer words and narrower layers. Neither was
trained before. Their users are made up.
"""

from __future__ import annotations

import numpy as np
import torch

from pfl_mobile.data import Split, UserText
from pfl_mobile.modules.personalize import personalize
from pfl_mobile.programs.deployment import Deployment
from pfl_mobile.rows import Rows
from pfl_mobile.study import Machine
from pfl_mobile.text.tokenizer import WordTokenizer
from pfl_recipes import find
from pfl_recipes.activity.study import study
from pfl_recipes.keyboard.model import Keyboard, KeyboardConfig
from pfl_recipes.keyboard.recipe import KeyboardRecipe, Prepared, deploy

#: Steps of training on each side.
STEPS = 50
KEYBOARD = KeyboardRecipe(
    model=KeyboardConfig(vocabulary=120, width=32, feed_forward=128),
    slots=8,
    memory=256,
    suggestions=40,
    max_steps=STEPS,
)


def keyboard() -> Deployment:
    """The keyboard, over words that are numbered."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    words = WordTokenizer.train([" ".join(f"word{i}" for i in range(100))], KEYBOARD.model.vocabulary)
    model = personalize(Keyboard(KEYBOARD.model).eval(), KEYBOARD.modules(), seed=0)
    return deploy(Prepared("made-up", KEYBOARD, model, words, Split(UserText("made-up", {}), {}), []))


def messages() -> list[str]:
    """A user who has habits, and words of their own."""
    draw = np.random.default_rng(0)
    ways = [[f"word{i}" for i in draw.choice(100, 8)] for _ in range(12)]
    ways[0][3] = ways[1][5] = "zorp"
    ways[2][2] = "blick"
    return [" ".join(ways[i]) for i in draw.choice(12, 400)]


def activity() -> Deployment:
    """The activity recipe's network after a round of made-up people, with what its strategy does for one user."""
    torch.set_num_threads(1)
    made = study(find("activity").made_up(), cohort=2, machine=Machine(processes=0))
    with made.run(1, local_steps=2) as result:
        return result.deployment()


def movements(count: int = 200) -> Rows:
    """A user's examples; which activity it is follows from the features."""
    draw = np.random.default_rng(1)
    x = draw.normal(size=(count, 43)).astype(np.float32)
    labels = (x @ draw.normal(size=(43, 6))).argmax(1)
    return {"x": x, "labels": labels.astype(np.int64), "weight": np.ones(count, np.float32)}
