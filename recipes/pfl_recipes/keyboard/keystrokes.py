"""One measure for every predictor: next-word recall and keystroke savings.

Convention. A message is typed word by word, letters in lower case. Before each letter the predictor sees the
words so far and the letters typed of the current one, and offers 3 words. As soon as the wanted word is
among them it is chosen, which costs one key and brings the space behind it. A word that is never offered
costs its letters and one key for the space, as every word does without predictions. Symbols are typed,
cost the same either way and are left out of both sums. Savings are 1 - keys with / keys without.

Recall counts every piece of a message, words and symbols, as the rows of ``pfl_mobile.text.encoder`` do. The word
recalls count words only and let the predictor offer words only, as keyboards do and as the typing does. A
word that the predictor does not know is a miss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

from pfl_mobile.text.pieces import is_symbol

#: ``suggest(words so far, letters typed, k)``: at most k words, best first.
Suggest = Callable[[Sequence[str], str, int], Sequence[str]]

# Asked for so many, a predictor has 3 words among them nearly always.
_ASK = 9


@dataclass(frozen=True)
class Score:
    """Sums over the pieces of some messages; scores add up."""

    targets: int = 0
    top1: int = 0
    top3: int = 0
    words: int = 0
    word_top1: int = 0
    word_top3: int = 0
    keys_without: int = 0
    keys_with: int = 0

    def __add__(self, other: Score) -> Score:
        """The score of both sets of messages."""
        mine, others = asdict(self), asdict(other)
        return Score(**{name: mine[name] + others[name] for name in mine})

    def rates(self) -> dict[str, float]:
        """Recalls in percent and keystroke savings in percent; 0 where there is nothing to count."""
        return {
            "top1": _percent(self.top1, self.targets),
            "top3": _percent(self.top3, self.targets),
            "word_top1": _percent(self.word_top1, self.words),
            "word_top3": _percent(self.word_top3, self.words),
            "keystroke_savings": _percent(self.keys_without - self.keys_with, self.keys_without),
        }


def _percent(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else 0.0


def words_offered(suggest: Suggest, context: Sequence[str], typed: str) -> list[str]:
    """The best 3 words (no symbols) among the first 9 suggestions."""
    return [w for w in suggest(context, typed, _ASK) if not is_symbol(w)][:3]


def keystrokes(suggest: Suggest, context: Sequence[str], word: str) -> int:
    """Keys needed for ``word`` and the space behind it."""
    for typed in range(len(word)):
        if word in words_offered(suggest, context, word[:typed]):
            return typed + 1
    return len(word) + 1


def score(suggest: Suggest, messages: Iterable[Sequence[str]], *, typing: bool = True) -> Score:
    """Type the messages with this predictor.

    Args:
        suggest: the predictor.
        messages: as pieces of :class:`pfl_mobile.text.encoder.WordTokenizer`.
        typing: also simulate the letters; without it the keys stay 0 (faster).
    """
    total = Score()
    for pieces in messages:
        for i, piece in enumerate(pieces):
            context = pieces[:i]
            offered = list(suggest(context, "", _ASK))
            first, among = int(offered[:1] == [piece]), int(piece in offered[:3])
            if is_symbol(piece):
                total += Score(targets=1, top1=first, top3=among)
                continue
            words = [w for w in offered if not is_symbol(w)][:3]
            word_first, word_among = int(words[:1] == [piece]), int(piece in words)
            without = len(piece) + 1 if typing else 0
            needed = (1 if word_among else keystrokes(suggest, context, piece)) if typing else 0
            total += Score(1, first, among, 1, word_first, word_among, without, needed)
    return total
