"""Text on the device: tokenizer, encoder and vocabulary slots."""

from pfl_mobile.text.encoder import TextEncoder
from pfl_mobile.text.subwords import SubwordTokenizer
from pfl_mobile.text.tokenizer import WordTokenizer
from pfl_mobile.text.vocabulary import MIN_USERS, VocabularyReport, VocabularyRule

__all__ = [
    "MIN_USERS",
    "SubwordTokenizer",
    "TextEncoder",
    "VocabularyReport",
    "VocabularyRule",
    "WordTokenizer",
]
