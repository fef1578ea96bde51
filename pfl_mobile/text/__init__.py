"""Text on the device: tokenizer, encoder and vocabulary slots."""

from pfl_mobile.text.encoder import TextEncoder
from pfl_mobile.text.subwords import SubwordTokenizer
from pfl_mobile.text.tokenizer import WordTokenizer

__all__ = ["SubwordTokenizer", "TextEncoder", "WordTokenizer"]
