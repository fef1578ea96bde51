"""What a neural keyboard is compared with: a personalized trigram, and presage."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pfl_mobile import data
from pfl_mobile.text import WordTokenizer

from . import presage as presage_predictor
from . import trigram
from .keystrokes import Score, score

#: ``progress(what, fraction)``.
Progress = Callable[[str, float | None], None]

#: Pieces of a text do not depend on the vocabulary: any trained tokenizer cuts alike.
_PIECES = WordTokenizer.train([], 5)


@dataclass(frozen=True)
class BaselineComparison:
    """A predictor before and after it saw each test user's history.

    Args:
        name: of the predictor.
        before: score by user, global model.
        after: score by user, with the user's history.
    """

    name: str
    before: Mapping[str, Score]
    after: Mapping[str, Score]

    def summary(self) -> dict[str, float | int | str]:
        """Means over users of the rates before and after, and how many users gained in top-1."""
        result: dict[str, float | int | str] = {"predictor": self.name, "users": len(self.before)}
        for moment, scores in (("before", self.before), ("after", self.after)):
            rates = [s.rates() for s in scores.values()]
            for key in rates[0]:
                result[f"{key}_{moment}"] = round(sum(r[key] for r in rates) / len(rates), 3)
        gains = [self.after[u].rates()["top1"] - self.before[u].rates()["top1"] for u in sorted(self.before)]
        result["users_better"] = sum(g > 0 for g in gains)
        result["users_worse"] = sum(g < 0 for g in gains)
        return result

    def to_json(self) -> dict[str, object]:
        """The summary and every user's sums."""
        users = {u: {"before": asdict(self.before[u]), "after": asdict(self.after[u])} for u in self.before}
        return {**self.summary(), "per_user": users}


def pieces(texts: Sequence[str]) -> list[list[str]]:
    """Texts as words and symbols."""
    return [_PIECES.words(t) for t in texts]


def compare_trigram(
    parts: data.Split,
    *,
    typing: bool = True,
    max_messages: int | None = None,
    progress: Progress | None = None,
) -> BaselineComparison:
    """The interpolated trigram on the test users; its weights are fitted on training users only.

    Args:
        parts: from :func:`pfl_mobile.data.split`.
        typing: also measure keystroke savings (slower).
        max_messages: test on at most so many of each user's held-out messages, the first ones.
        progress: told after every user.
    """
    world = trigram.fit({u: pieces(parts.train.texts(u)) for u in parts.train.users})
    before, after = {}, {}
    for done, (user, texts) in enumerate(parts.test.items()):
        held_out = pieces(texts.held_out[:max_messages])
        before[user] = score(world.suggest, held_out, typing=typing)
        after[user] = score(world.personal(pieces(texts.history)).suggest, held_out, typing=typing)
        if progress:
            progress("trigram", (done + 1) / len(parts.test))
    return BaselineComparison("trigram", before, after)


def compare_presage(
    parts: data.Split,
    *,
    typing: bool = True,
    max_messages: int | None = None,
    progress: Progress | None = None,
) -> BaselineComparison:
    """Presage on the test users, retrained on the same text; arguments as :func:`compare_trigram`.

    Raises:
        MissingDependencyError: presage is not installed.
    """
    before, after = {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = presage_predictor.count(pieces(list(parts.train.all_texts())), folder, "world")
        for done, (user, texts) in enumerate(parts.test.items()):
            held_out = pieces(texts.held_out[:max_messages])
            own = presage_predictor.count(pieces(texts.history), folder, "own")
            with presage_predictor.Presage([world], folder) as predictor:
                before[user] = score(predictor.suggest, held_out, typing=typing)
            with presage_predictor.Presage([world, own], folder) as predictor:
                after[user] = score(predictor.suggest, held_out, typing=typing)
            if progress:
                progress("presage", (done + 1) / len(parts.test))
    return BaselineComparison("presage", before, after)


def main() -> None:
    """``python -m pfl_recipes.keyboard.baselines [SRC]``: both predictors on a dataset, as JSON."""
    source = sys.argv[1] if len(sys.argv) > 1 else "nus-sms"
    parts = data.split(data.load(source))
    found = [compare(parts) for compare in (compare_trigram, compare_presage)]
    print(json.dumps([c.to_json() for c in found], indent=1))


if __name__ == "__main__":
    main()
