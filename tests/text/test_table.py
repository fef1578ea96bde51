"""The table of code points that the piece rules are stated over."""

from __future__ import annotations

import json
import unicodedata

from pfl_mobile.text.table import ACCENTS, ASSIGNED, KIND, LOWER, PATH, Ranges

#: Category letter of what most kinds hold.
CATEGORY = {**dict.fromkeys("LJHKpTPQ", "L"), **dict.fromkeys("Mmo", "M"), **dict.fromkeys("Nd", "N")}


def test_ranges_are_in_order_and_every_code_point_has_one_kind() -> None:
    table = json.loads(PATH.read_text(encoding="utf-8"))
    taken = bytearray(0x110000)
    for ends in (*table["kinds"].values(), table["assigned"], table["accents"]):
        assert ends == sorted(ends)
        assert len(ends) % 2 == 0
    for ends in table["kinds"].values():
        for first, last in zip(ends[::2], ends[1::2], strict=True):
            assert not any(taken[first : last + 1])
            taken[first : last + 1] = b"\1" * (last + 1 - first)


def test_the_table_agrees_with_pythons_unicode_data() -> None:
    """Categories that Unicode changed since Python's version are the only differences."""
    differ = []
    for point in range(0x110000):
        char, kind = chr(point), chr(KIND[point])
        category = unicodedata.category(char)
        if category in ("Cn", "Cs", "Co"):
            continue
        if kind in CATEGORY and CATEGORY[kind] != category[0]:
            differ.append(point)
        if category[0] in "LMN" and kind == "S":
            differ.append(point)
        if category in ("Zs", "Zl", "Zp", "Cc") and kind != "W":
            differ.append(point)
    assert len(differ) < 20


def test_the_mappings_agree_with_pythons() -> None:
    for point in range(0x110000):
        char = chr(point)
        if point in ASSIGNED and chr(KIND[point]) != "a":
            small = "i" if char == "İ" else char.lower()
            assert chr(LOWER[point]) == small, hex(point)
        if point in ASSIGNED:
            normal = unicodedata.normalize("NFKC", char)
            assert (point in ACCENTS) == (
                normal[0] == " " and unicodedata.category(normal[1:2] or "a")[0] == "M"
            )


def test_normalization_is_that_of_every_later_version() -> None:
    """Nothing outside Unicode 8.0 comes out of normalizing what is inside."""
    for point in range(0x110000):
        if point in ASSIGNED:
            for form in ("NFKC", "NFD"):
                assert all(ord(c) in ASSIGNED for c in unicodedata.normalize(form, chr(point)))


def test_ranges() -> None:
    some = Ranges([5, 7, 9, 9])
    assert [p for p in range(12) if p in some] == [5, 6, 7, 9]
    assert some.within(8) == [(5, 7)]
    assert some.gaps(20) == [(0, 4), (8, 8), (10, 20)]
    assert list(some.runs("\x05\x06\x08\x09")) == [("\x05\x06", True), ("\x08", False), ("\x09", True)]
    assert Ranges([0, 3]).gaps(5) == [(4, 5)]
