"""Version 2 of the piece rules: what they cut, and what holds for every text."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfl_mobile.text.pieces import cut, holds_digit, is_symbol, script_of
from pfl_mobile.text.specials import SPECIALS
from pfl_mobile.text.table import ASSIGNED, KIND

SKIN, FAMILY = "\U0001f3fd", "\U0001f468\u200d\U0001f469\u200d\U0001f467"
SCOTLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"

#: Everything that the rules look at, and letters of every sort.
ODD = (
    "aZé'`\u00b4\u2019\u02bc1#*. \n\u0301\u0323\u0308İΣσςßǰ"
    "\u00a8\u0385\u1fed\u200b\u200c\u200d\ufe0e\ufe0f\u20e3\u00ad\ufeff"
    "\U0001f602\u2764\u2122\u2139\U0001f44d\U0001f3fd\U0001f3f4\U000e0067\U000e007f\U0001f1e9\U0001f1ea"
    "漢あアー\uff70\uff76\uff9eกเาำ\u0e31กក\u17d2ရ\u1039\u1004ا\u064fक\u094dષ한\u1112\u1161\u11ab½ﬁ\ufdfa\U0001e7e0\U00011938\ud83d\ude02"
)
odd = st.lists(st.sampled_from(ODD), max_size=14).map("".join)
everything = st.text(st.characters(codec=None), max_size=12)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("See you... there?", ["see", "you", ".", ".", ".", "there", "?"]),
        ("DON\u2019T don\u00b4t don`t don\uff07t don\u02bct", ["don't"] * 5),
        ("'tis dogs' `x` \u2018q\u2019", ["'", "tis", "dogs", "'", "`", "x", "`", "'", "q", "'"]),
        ("rock'n'roll o'clock ''", ["rock'n'roll", "o'clock", "'", "'"]),
        ("<#> :-)", ["<", "#", ">", ":", "-", ")"]),
        (f"{FAMILY}\U0001f44d{SKIN} ok", [FAMILY, f"\U0001f44d{SKIN}", "ok"]),
        ("\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7\U0001f1e6", ["🇩🇪", "🇫🇷", "🇦"]),
        (f"{SCOTLAND}\U0001f3f3\ufe0f\u200d\U0001f308", [SCOTLAND, "\U0001f3f3\ufe0f\u200d\U0001f308"]),
        ("1\ufe0f\u20e3 1\u20e3 #\u20e3 a1\u20e3", ["1️⃣", "1️⃣", "#️⃣", "a", "1️⃣"]),
        ("\u2764 \u2764\ufe0f \u2764\ufe0e", ["\u2764", "\u2764\ufe0f", "\u2764"]),
        ("\U0001f602\ufe0f \u261d\ufe0f\U0001f3fd", ["\U0001f602", "\u261d\U0001f3fd"]),
        ("\u2122 \u2122\ufe0f", ["tm", "\u2122\ufe0f"]),
        (
            "\U0001f4f1\u20e0\U0001fafe\U0001f3fd",
            ["\U0001f4f1\u20e0", "\U0001fafe\U0001f3fd"],
        ),  # a future emoji
        ("می\u200cخواهم بروم", ["می\u200cخواهم", "بروم"]),
        ("क\u094d\u200dष", ["क\u094d\u200dष"]),
        ("a\u200cb\u200dc Auf\u00adlage \ufeffhi", ["abc", "auflage", "hi"]),
        ("\u200fمرحبا\u200e a\u200bb", ["مرحبا", "a", "b"]),
        ("cafe\u0301 café CAFÉ", ["café"] * 3),
        ("İstanbul ISTANBUL", ["istanbul"] * 2),
        ("ΟΔΟΣ οδος Σ 5σ", ["οδος", "οδος", "σ", "5σ"]),
        ("J\u030c \u01f0", ["\u01f0"] * 2),
        ("ｆｕｌｌ\u00a0ﬁt…", ["full", "fit", ".", ".", "."]),
        ("\u00a8 \u00b4 x\u00a8 \u0301a", ["\u00a8", "\u00b4", "x", "\u00a8", "a"]),
        ("我想吃火锅", list("我想吃火锅")),
        ("らーめんとラーメン、ﾃﾚﾋﾞ", ["らー", "め", "ん", "と", "ラーメン", "、", "テレビ"]),
        ("ฉันจะไป", ["ฉั", "น", "จะ", "ไป"]),
        ("ខ្ញុំ", ["ខ្ញុំ"]),
        ("안녕 \u1112\u1161\u11ab", ["안녕", "한"]),
        ("hi \ud83d \ud83d\ude02", ["hi", "\ufffd", "\U0001f602"]),
        ("3.5kg m²", ["3", ".", "5kg", "m2"]),
        (" \n\u200b\u0301\ufe0f\u20e3\u200d\u2800", []),
    ],
)
def test_pieces_of_texts(text: str, pieces: list[str]) -> None:
    assert cut(text) == pieces


@settings(max_examples=500)
@given(st.one_of(odd, everything))
def test_pieces_joined_by_spaces_are_cut_into_the_same_pieces(text: str) -> None:
    pieces = cut(text)
    assert cut(" ".join(pieces)) == pieces
    for piece in pieces:
        assert cut(piece) == [piece]


@settings(max_examples=500)
@given(st.one_of(odd, everything))
def test_every_piece_can_be_seen_and_is_no_special_token(text: str) -> None:
    for piece in cut(text + "<s></s><unk><pad>"):
        assert piece not in SPECIALS
        kinds = piece.translate(KIND)
        assert kinds[0] not in "MmoWXvztngk"
        assert not set(kinds) & set("WX")
        assert is_symbol(piece) or not set(kinds) & set("SEFRcev")


@settings(max_examples=500)
@given(st.one_of(odd, everything).filter(lambda t: all(ord(c) in ASSIGNED for c in t)))
def test_composed_and_decomposed_text_are_cut_alike(text: str) -> None:
    assert cut(unicodedata.normalize("NFD", text)) == cut(unicodedata.normalize("NFC", text)) == cut(text)


@given(st.text(st.sampled_from("abzéñøжяσό дωա' "), max_size=20))
def test_capitals_are_cut_as_small_letters(text: str) -> None:
    assert cut(text.upper()) == cut(text.replace("ς", "σ"))


@given(st.text(st.characters(max_codepoint=127), max_size=30))
def test_ascii_is_cut_as_within_other_text(text: str) -> None:
    assert [*cut(text), "é"] == cut(f"{text} é")


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "é",
        "'`",
        "\u0301",
        FAMILY,
        "\u200d",
        "#\ufe0f",
        SCOTLAND[:-1],
        "ا\u200c",
        "\u00a8",
        "เ",
        "ក\u17d2",
        "漢",
    ],
)
def test_long_texts_and_long_words_do_no_harm(unit: str) -> None:
    """A megabyte; the whole would take days if the work were quadratic."""
    assert "".join(cut(unit * (1_000_000 // len(unit.encode())))) is not None


def test_symbols_digits_and_scripts() -> None:
    symbols = [".", "😂", "1️⃣", "ℹ️", "🇩🇪", "\u2764\ufe0f", "<unk>", "'", "ℹ🏽"]
    words = ["a", "5kg", "漢", "あ", "テレビ", "จะ", "می\u200cخواهم", "don't", "٣"]
    assert [is_symbol(p) for p in symbols] == [True] * len(symbols)
    assert [is_symbol(p) for p in words] == [False] * len(words)
    assert [holds_digit(p) for p in ("a2", "\u0663", "1️⃣", "two", "十", "〇")] == [True] * 3 + [False] * 2 + [
        True
    ]
    assert [script_of(p) for p in ("漢", "らー", "テレビ", "จะ", "word", "한글", "😂")] == [
        *["characters"] * 3,
        "clusters",
        *[None] * 3,
    ]
