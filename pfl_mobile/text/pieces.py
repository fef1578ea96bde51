r"""Version 2 of the rules that cut a text into pieces: words and symbols.

They are stated over one table, ``unicode.json`` beside this file, so that no platform's Unicode version matters: Kotlin
and Swift load the same file and follow this list word for word. ``conformance/text.json`` decides.

**The table.** ``kinds`` gives every code point one kind, a letter; ranges are [first, last, first, last, ...], and
what is in no range is a symbol, ``S``.

====== =============================================================================================================
L, J   letters; J: of scripts in which a joiner inside a word changes it (Arabic, Devanagari, ...)
H      an ideograph (Chinese, Japanese) or a Hiragana letter
K, p   Katakana; p: the sign that makes a vowel long, U+30FC
T      a letter of a script without spaces between words: Thai, Lao, Khmer, Burmese and their relatives
P, Q   of those scripts, a vowel that is written before its consonant; one that is a letter and stands behind it
N, d   numbers; d: the digits 0 to 9
M, m   marks; m: of the scripts of J
o      marks of the scripts of T that put the next letter under this one
W      separators and control characters; zero width space; blank Braille
X      what cannot be seen: the rest of Default_Ignorable_Code_Point, noncharacters, interlinear annotation
E, e   emoji; e: those that are text unless U+FE0F follows. Code points reserved for future emoji are E
F, R   skin tones; regional indicators
c, k   # and \*; the mark that makes a keycap, U+20E3
v      variation selector 16, U+FE0F
t, g   tags U+E0020 to U+E007E; the tag that ends them, U+E007F
z, n   zero width joiner; zero width non-joiner
a      what is always an apostrophe: U+0027 U+02BC U+055A U+2018 U+2019 U+201B U+FF07
b      what is one between letters only: U+0060 U+00B4 U+05F3 U+2032
S      every other code point
====== =============================================================================================================

``lower`` is the simple lower-case mapping, as runs of four numbers: first, last, step, and what is added to each of
first, first + step, ..., last. ``assigned`` are the code points of Unicode 8.0, ranges; ``accents`` those whose NFKC
begins with a space and a mark, ranges.

**The rules.**

1. Half of a surrogate pair without the other half becomes U+FFFD. Code points of kind X are left out.
2. *Emoji.* Over the kinds of what is left, the matches of this regular expression, left to right, are pieces::

       element  = (E v? F? | F v? | e (v F? | F)) (t+ g)?  |  R R  |  [dc] v? k
       further  = z ( ([Ee] v? F? | F v?) (t+ g)?  |  R R )
       emoji    = element further*  |  e further+

   In a piece, a v stays only where it is needed: after e and not before F. A keycap always gets one. So it is one
   piece however it was typed.
3. Every part between two emoji, before the first and behind the last is cut by the rules below.
4. v, k, t and g are left out of it. Of joiners (a run of z and n) between J or m on both sides the last stays; all
   others are left out.
5. *Normalize.* Runs of code points outside ``assigned`` stay as they are. A run inside becomes NFC; then ``accents``
   in it stay, and every run between them becomes NFKC. Normalization is stable for assigned code points, and every
   platform in use knows 8.0.
6. *Fold.* Each code point is replaced by its simple lower-case mapping, and kind a by U+0027; then rule 5 again.
7. *Cut.* Over the kinds of the result, the matches of this regular expression, left to right, are the pieces; what
   matches none (separators, marks without a base) is left out::

       word     = [LJNd] [LJNdMmozn]* ([ab] [LJNd] [LJNdMmozn]*)*
       kana     = [Kp] [KpMmo]*
       one      = H [Mmop]*
       cluster  = P? T ([MmoQ] | o T)*  |  [PQ] [Mmo]*          (o T is tried first)
       symbol   = [SabceEFR] [Mmo]*

   Marks at the very beginning of a part behind an emoji belong to that emoji.
8. In a word, kind b becomes U+0027; and U+03C3 at its end, behind one of L J M m, becomes U+03C2 (final sigma).

**What follows.** An apostrophe inside a word belongs to it (``don't``, ``rock'n'roll``); before and behind a word it
cannot be told from a quotation mark, and is a symbol (``'tis`` and ``dogs'`` are two pieces). ``...`` is three pieces,
as on a keyboard it is three keys. No piece can read ``<pad>``, ``<s>``, ``<unk>`` or ``</s>``: a piece never mixes
letters and symbols. Pieces joined by spaces are cut into the same pieces. Composed and decomposed text give the same
pieces (in Unicode 8.0). The work is linear in the length of the text.

**Scripts without spaces.** Words of Chinese, Japanese and Thai need a dictionary, which three languages would have to
share to the bit. So Chinese and Japanese are cut into single characters, and runs of Katakana stay whole: a keyboard
suggests the next character. Thai, Lao, Khmer and Burmese are cut into clusters of about a syllable: no harm is done,
but suggestions are poor. :func:`script_of` tells these pieces, and what chooses a vocabulary reports them.
"""

from __future__ import annotations

import re
import unicodedata

from pfl_mobile.files.reading import whole_text
from pfl_mobile.text.table import ACCENTS, ASSIGNED, KIND, LOWER

_FURTHER = r"(?:z(?:(?:[Ee]v?F?|Fv?)(?:t+g)?|RR))"
_EMOJI = re.compile(
    rf"(?:(?:Ev?F?|Fv?|e(?:vF?|F))(?:t+g)?|RR|[dc]v?k){_FURTHER}*|e{_FURTHER}+"  # element further* | e further+
)
_WORD = "[LJNd][LJNdMmozn]*(?:[ab][LJNd][LJNdMmozn]*)*"
_PIECE = re.compile(
    rf"{_WORD}|[Kp][KpMmo]*|H[Mmop]*|P?T(?:oT|[MmoQ])*|[PQ][Mmo]*|[SabceEFR][Mmo]*",
)
_LEFT_OUT = re.compile("[vktg]+")
_JOINERS = re.compile("[zn]+")
_ODD_KIND = re.compile("[vktgzn]")
_MARKS = re.compile("[Mmo]+")

#: What rules 5 has to look at: code points outside 8.0, accents, and beyond the first plane, whichever they are.
_PERHAPS_ODD = re.compile(
    "["
    + "".join(rf"\u{a:04x}-\u{b:04x}" for a, b in (*ASSIGNED.gaps(0xFFFF), *ACCENTS.within(0xFFFF)))
    + "\U00010000-\U0010ffff]"
)

#: The same rules for ASCII, folded: nothing but words and symbols is left of them.
_ASCII = re.compile(r"[a-z0-9]+(?:['`][a-z0-9]+)*|[!-/:-@\[-`{-~]")


def cut(text: str) -> list[str]:
    """The pieces of a text by the rules above.

    >>> cut("See you at 5... don’t WAIT 👍🏽")
    ['see', 'you', 'at', '5', '.', '.', '.', "don't", 'wait', '👍🏽']
    """
    if text.isascii():
        found = _ASCII.findall(text.lower())
        return [p.replace("`", "'") if len(p) > 1 else p for p in found] if "`" in text else found
    text = whole_text(text)
    kinds = text.translate(KIND)
    if "X" in kinds:
        text = _without(text, kinds, "X")
        kinds = kinds.replace("X", "")
    pieces: list[str] = []
    done = 0
    for match in _EMOJI.finditer(kinds):
        start, end = match.span()
        _cut_part(text[done:start], kinds[done:start], pieces, behind_emoji=done > 0)
        pieces.append(_emoji(text[start:end], match[0]))
        done = end
    _cut_part(text[done:], kinds[done:], pieces, behind_emoji=done > 0)
    return pieces


def is_symbol(piece: str) -> bool:
    """Whether a piece is a symbol (or a special token) and not a word."""
    kinds = piece.translate(KIND)
    return kinds[0] not in "LJHKpTPQNd" or any(k in "vEF" for k in kinds)


def holds_digit(piece: str) -> bool:
    """Whether a code point of the piece is a number (kinds N and d): codes, dates, amounts, most passwords."""
    return any(k in "Nd" for k in piece.translate(KIND))


def script_of(piece: str) -> str | None:
    """``"characters"`` for a piece of Chinese or Japanese, ``"clusters"`` for one of Thai, Lao, Khmer or Burmese.

    None: of a script in which a piece is a word.
    """
    kind = chr(KIND[ord(piece[0])])
    return "characters" if kind in "HKp" else "clusters" if kind in "TPQ" else None


def fold(text: str) -> str:
    """Rules 5 and 6 for a part of a text."""
    return _normalized(_normalized(text).translate(LOWER))


def _without(text: str, kinds: str, left_out: str) -> str:
    return "".join([c for c, k in zip(text, kinds, strict=True) if k not in left_out])


def _emoji(text: str, kinds: str) -> str:
    """The one spelling of an emoji."""
    if kinds[-1] == "k" and kinds[0] in "dc":
        return f"{text[0]}\ufe0f\u20e3"
    if "v" not in kinds:
        return text
    # The kind before and behind each code point.
    around = zip(text, kinds, "^" + kinds, kinds[1:] + "$", strict=False)
    return "".join([c for c, k, before, behind in around if k != "v" or (before == "e" and behind != "F")])


def _cut_part(text: str, kinds: str, pieces: list[str], *, behind_emoji: bool) -> None:
    """Rules 4 to 8: adds to the pieces."""
    if not text:
        return
    if _ODD_KIND.search(kinds):
        text = _without_joiners(_without(text, kinds, "vktg"), _LEFT_OUT.sub("", kinds))
    text = fold(text)
    kinds = text.translate(KIND)
    if behind_emoji and (marks := _MARKS.match(kinds)):
        pieces[-1] += text[: marks.end()]
    odd = "b" in kinds or "\u03c3" in text
    for match in _PIECE.finditer(kinds):
        start, end = match.span()
        piece = text[start:end]
        if odd and end - start > 1 and kinds[start] in "LJNd":
            piece = _word(piece, match[0])
        pieces.append(piece)


def _without_joiners(text: str, kinds: str) -> str:
    parts, done = [], 0
    for match in _JOINERS.finditer(kinds):
        start, end = match.span()
        stays = start > 0 and kinds[start - 1] in "Jm" and end < len(kinds) and kinds[end] in "Jm"
        parts.append(text[done:start] + (text[end - 1] if stays else ""))
        done = end
    return "".join([*parts, text[done:]])


def _normalized(text: str) -> str:
    """Rule 5."""
    if not _PERHAPS_ODD.search(text):
        return unicodedata.normalize("NFKC", text)
    parts = []
    for run, known in ASSIGNED.runs(text):
        if known:
            for part, accents in ACCENTS.runs(unicodedata.normalize("NFC", run)):
                parts.append(part if accents else unicodedata.normalize("NFKC", part))
        else:
            parts.append(run)
    return "".join(parts)


def _word(piece: str, kinds: str) -> str:
    """Rule 8."""
    if "b" in kinds:
        piece = "".join(["'" if k == "b" else c for c, k in zip(piece, kinds, strict=True)])
    if piece[-1] == "\u03c3" and kinds[-2] in "LJMm":
        piece = piece[:-1] + "\u03c2"
    return piece
