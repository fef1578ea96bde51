"""Which scripts a model of text does not serve, so that a bundle can say so.

Words of Chinese, Japanese, Thai, Lao, Khmer and Burmese are written without spaces, and neither the piece rules nor the
way in which words are put together of subwords finds where they end. What is typed in them does no harm, but no words
come of it.
"""

from __future__ import annotations

from collections import Counter

from pfl_mobile.text.pieces import script_of
from pfl_mobile.text.specials import SPECIALS
from pfl_mobile.text.tokenizer import WordTokenizer

#: ISO 15924 codes of Chinese and Japanese, whose pieces are characters, and of scripts whose pieces are syllables.
CHARACTERS, SYLLABLES = ("Hani", "Hira", "Kana"), ("Khmr", "Laoo", "Mymr", "Thai")
#: With so many characters in the vocabulary, most of what is written in Chinese or Japanese can be suggested.
ENOUGH_CHARACTERS = 1000


def scripts_not_served(words: WordTokenizer | None) -> list[str]:
    """ISO 15924 codes of the scripts without spaces that a model does not serve, sorted.

    Of rules of version 2 with a vocabulary of many characters, Chinese and Japanese are served one character at a time.

    Args:
        words: its tokenizer; None for one of subwords.
    """
    if words is not None and words.rules.version > 1:
        pieces = Counter(script_of(words.word(i)) for i in range(len(SPECIALS), words.size))
        if pieces["characters"] >= ENOUGH_CHARACTERS:
            return sorted(SYLLABLES)
    return sorted((*CHARACTERS, *SYLLABLES))
