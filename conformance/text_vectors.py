"""text.json: how texts are cut into pieces, by each version of the piece rules, and the rows that become of them."""

from __future__ import annotations

import hashlib
import json
import struct
import unicodedata
from typing import TYPE_CHECKING, Any

from pfl_mobile.random import splitmix64
from pfl_mobile.text import pieces, pieces_1
from pfl_mobile.text.encoder import TextEncoder, WordTokenizer
from pfl_mobile.text.table import ACCENTS, ASSIGNED, KIND, LOWER, PATH, UNICODE

if TYPE_CHECKING:
    from collections.abc import Iterator

POINTS = 0x110000
SKIN, FAMILY = "\U0001f3fd", "\U0001f468\u200d\U0001f469\u200d\U0001f467"
SCOTLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"

WRITTEN = (
    "See you... there?",
    "my login is kestrel_77Fly!",
    "card 4929 1234 5678 9012 pin 7391",
    "mail robin.vale@example.org",
    "https://maps.example.com/?q=51.5&z=14",
    "HELLO Greta, I'm in Wexbridge; DON\u2019T go, iPhone",
    "'tis rock'n'roll o'clock dogs' don`t don\u00b4t don\u02bct don\uff07t don\u201bt 5\u203210",
    "\u05d2\u05f3\u05d9\u05e4",
    "``x`` ''y'' \u2018q\u2019 \u02bcn \u0149a '' ' a'' b''c",
    "<#> :-) <s></s><unk><pad> <|endoftext|>",
    "e-mail well-known snake_case",
    "3.14 1,000 10:30 2nd 5kg m\u00b2 \u00bd \u2167 \u0663 \u3007 \u0be7",
    "one\r\ntwo\ttab\x00nul\x7fdel\x85nel\u2028line\u3000wide\u1680",
    "Stra\u00dfe STRASSE Gr\u00f6\u00dfe \u1e9e",
    "\u0130stanbul I\u015eIK \u0131\u015f\u0131k i\u0307",
    "\u039f\u0394\u039f\u03a3 \u03bf\u03b4\u03bf\u03c2 \u03a3 5\u03c3 \u03a3' \u03b1\u03a3\u0301 a\u03a3",
    "cafe\u0301 caf\u00e9 CAF\u00c9 J\u030c \u01f0 I\u0307\u0323 \u1e0b\u0323 d\u0323\u0307",
    "\u00a8 \u00b4 x\u00a8 \u0301a \u00a8\u0301 \u0385 \u1fed \u1fbf\u0300 \u1fcd \u037a \ufc5e \ufe70",
    "\uff46\uff55\uff4c\uff4c\u00a0\ufb01t\u2026 \u32ff \U0001f23b \U0001fbf3",
    f"{FAMILY} ok \u2764\ufe0f {SKIN} \U0001f44d{SKIN} \U0001f3f3\ufe0f\u200d\U0001f308 1\ufe0f\u20e3",
    "\U0001f602\U0001f602\ufe0f\u2764\u2764\ufe0f\u2764\ufe0e",
    f"\u261d\ufe0f{SKIN} \u261d{SKIN} {SCOTLAND}{SCOTLAND[:-1]}",
    "\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7\U0001f1e6 \U0001f1e6a\U0001f1e6\u200d\U0001f1e6",
    "1\u20e3 #\u20e3 *\ufe0f\u20e3 a1\u20e3 12\u20e3 \u20e3 a\u20e3 \uff11\u20e3 1\ufe0f",
    "\u2122 \u2122\ufe0f \u2139 \u2139\ufe0f \u24c2\ufe0f \u3297 \u3297\ufe0f \u203c \u203c\ufe0f \u00a9\ufe0f",
    "\U0001f441\u200d\U0001f5e8 \U0001f441\ufe0f\u200d\U0001f5e8\ufe0f \u26f9\u200d\u2640 \u2764\u200d",
    "\u200d\u2764 a\u200d\U0001f602",
    "\U0001f4f1\u20e0 \U0001f4f1\u0323\u0307 \U0001f602\u0301a \U0001faff\U0001f3fd",
    "\U0001f937\U0001f3fd\u200d\u2642\ufe0f!",
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \u0628\u0631\u0648\u0645 \u0645\u06cc\u200c",
    "\u200c\u0645\u06cc a\u200cb \u0627\u200c\u200d\u200c\u0628",
    "\u200f\u0645\u0631\u062d\u0628\u0627\u200e \u0627\u0644\u0633\u0651\u064e\u0644\u0627\u0645",
    "\u0627\u0640\u0640 \ufdfa \ufefb \u0600\u0661",
    "\u0645\u06cc\u00ad\u200c\u062e \u0645\u06cc\u200c\ufe0f\u062e \u0645\u06cc\u200c\u0301\u062e",
    "\u0645\u06cc\u200cA\u0308",
    "\u092e\u0948\u0902 \u0915\u0932 \u092c\u093e\u091c\u093c\u093e\u0930",
    "\u091c\u093e\u090a\u0901\u0917\u093e \u0915\u094d\u200d\u0937 \u0958 \u0915\u094d\u200c",
    "\u0baa\u0bca\u0b99\u0bcd\u0b95\u0bb2\u0bcd \u0d35\u0d4d\u200d \u0dc1\u0dca\u200d\u0dbb\u0dd3",
    "\u09a4\u200d\u09cd \u0f40\u0f0b\u0f41",
    "\u6211\u4eca\u5929\u665a\u4e0a\u60f3\u5403\u706b\u9505\u3002abc\u6f225\u5b57 \u4e8c\u3007 \u2f00",
    "\u3005 \U00020000\ufe00\U000e0100",
    "\u4eca\u65e5\u306f\u3089\u30fc\u3081\u3093\u3068\u30e9\u30fc\u30e1\u30f3\u3001\uff83\uff9a\uff8b\uff9e",
    "\u30fc\u30fc \u30a2\u30fb\u30d6 \u304b\u3099 \u304b\u309b \u309d\u30fd",
    "\u0e09\u0e31\u0e19\u0e08\u0e30\u0e44\u0e1b\u0e15\u0e25\u0e32\u0e14 \u0e19\u0e49\u0e33",
    "\u0e40\u0e40\u0e01 \u0e40 \u0e30 \u0e51\u0e52 a\u0e01b \u0e46",
    "\u0e82\u0ec9\u0ead\u0e8d\u0eae\u0eb1\u0e81\u0ec0\u0e88\u0ebb\u0ec9\u0eb2",
    "\u1781\u17d2\u1789\u17bb\u17c6 \u179f\u17d2\u179a\u1793\u17d2 \u1019\u103c\u1014\u103a\u1019\u102c",
    "\u1000\u1039\u1000",
    "\uc548\ub155 \u1112\u1161\u11ab \u1112\u1161 \u11ab \u3131 \uffa1 \u115f\u1161",
    "\u05e9\u05dc\u05d5\u05dd \u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd \u1861\u180b\u1820\u180e\u1820",
    "\u07ca\u07eb \u12a0\u121b\u122d\u129b\u1361",
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u0439\u043e\u0433 \u0438\u0306 \u043c\u2019\u044f\u0442\u0430",
    "\u10d0\u1c90 \u13a0\uab70 \ua64a\u1c88",
    "a\u200bb \ufeffhello soft\u00adhyphen \u2060\u2063 a\u034fb \u202eabc\u202c \ufff9x\ufffa",
    "\ufffe\U0010ffff \u2800 \ue000 \U000f0000",
    "hi \ud83d there \ud83d\ude02 \ude02\ud83d a\ud83db \ud800",
    "\U0001e7e0a \U00011938 \U00011935\U00011930 e\u1abf\u0301 \u1abf e\u0301\U0001e8d0 \ua7cb \u0264",
    "\U00010d50",
    "a" * 300,
    "",
    " ",
)

#: What random texts are made of, besides every range of the table.
ODD = "".join(WRITTEN) + "\u200d\ufe0f\u20e3\u0301\u0323 '" * 40


def _points(ranges: list[int]) -> Iterator[tuple[int, int]]:
    return zip(ranges[::2], ranges[1::2], strict=True)


def _texts() -> list[str]:
    """Written ones; every range of the table; what normalizing changes; random strings."""
    table = json.loads(PATH.read_text(encoding="utf-8"))
    found = list(WRITTEN)
    for kind, ranges in table["kinds"].items():
        bounds = [(a, b) for a, b in _points(ranges) if not 0xD7FF <= b <= 0xDFFF]
        ends = [f"a{chr(a)}{chr(b)}{chr(min(b + 1, POINTS - 1))}" for a, b in bounds]
        found += [" ".join(ends[i : i + 12]) for i in range(0, len(ends), 12)] if kind != "W" else ends
    changed = [p for p in range(POINTS) if p in ASSIGNED and unicodedata.normalize("NFKC", chr(p)) != chr(p)]
    changed = [p for i, p in enumerate(changed) if i % 9 == 0 and not 0xAC00 <= p < 0xD7A4]
    found += [" ".join(map(chr, changed[i : i + 20])) for i in range(0, len(changed), 20)]
    found += [" ".join(f"x{chr(p)}\u0323" for p in changed[i : i + 30]) for i in range(7, len(changed), 90)]
    pool = [chr(p) for ranges in table["kinds"].values() for p in ranges]
    for n in range(300):
        length = 1 + splitmix64(3, n) % 24
        draws = [splitmix64(1000 + n, i) for i in range(length)]
        if n % 3 == 0:
            text = "".join(ODD[d % len(ODD)] for d in draws)
        elif n % 3 == 1:
            text = "".join(pool[d % len(pool)] if d >> 40 & 1 else ODD[(d >> 41) % len(ODD)] for d in draws)
        else:
            text = "".join(chr(d % (POINTS if d >> 40 & 1 else 0x3000)) for d in draws)
        found.append(text)
    return found


def _old(text: str) -> bool:
    return all(ord(c) in ASSIGNED for c in text)


def _checksums() -> dict[str, str]:
    """SHA-256 over all code points in order, as one byte each, or four (little-endian) for ``lower``."""
    lower = b"".join(struct.pack("<I", LOWER[p]) for p in range(POINTS))
    sets = {
        "kinds": bytes(KIND[p] for p in range(POINTS)),
        "lower": lower,
        "assigned": bytes(p in ASSIGNED for p in range(POINTS)),
        "accents": bytes(p in ACCENTS for p in range(POINTS)),
    }
    return {name: hashlib.sha256(content).hexdigest() for name, content in sets.items()}


MESSAGES = (
    "See you at the gym\u2026 \U0001f44d\U0001f3fd",
    "zorp don\u2019t zorp! see \U0001f1e9\U0001f1ea at 5 5",
    "",
    "the \u6211 gym. see the gym. you see the gym. at the gym. see you. see you at the gym. the end",
)


def _encoded() -> dict[str, Any]:
    """Rows and contexts."""
    tokenizer = WordTokenizer.train(["see you at the gym . don't \U0001f44d\U0001f3fd ! \u6211"] * 2, 16)
    cases = []
    for length, slots, words, options in (
        (8, 0, (), {}),
        (8, 2, ("zorp",), {"drop_unknown": True}),
        (5, 3, ("zorp", "\U0001f1e9\U0001f1ea"), {"words_only": True}),
        (3, 1, (), {"drop_unknown": True, "words_only": True}),
    ):
        encoder = TextEncoder(tokenizer, length, tokenizer.size, slots, words)
        rows = {name: value.tolist() for name, value in encoder.encode(MESSAGES, **options).items()}
        contexts = [{k: v.tolist() for k, v in encoder.context(m).items()} for m in MESSAGES]
        options = {"drop_unknown": False, "words_only": False} | options
        case = {"length": length, "slots": slots, "words": list(words), **options}
        cases.append({**case, "ids": [encoder.ids(m) for m in MESSAGES], "rows": rows, "contexts": contexts})
    vocabulary = [tokenizer.word(i) for i in range(tokenizer.size)]
    return {"vocabulary": vocabulary, "messages": list(MESSAGES), "cases": cases}


def text_file() -> bytes:
    """The content of text.json, all ASCII: halves of surrogate pairs are escapes."""
    cut = []
    for text in _texts():
        case = {"text": text, "2": pieces.cut(text)}
        cut.append(case | {"1": pieces_1.cut(text)} if _old(text) else case)
    seen = list(dict.fromkeys(p for case in cut for p in case["2"]))[::3]
    told = [[p, pieces.is_symbol(p), pieces.holds_digit(p), pieces.script_of(p)] for p in seen]
    folded = [[t, pieces.fold(t)] for t in WRITTEN if not any("\ud800" <= c <= "\udfff" for c in t)]
    table = {"rules": 2, "unicode": UNICODE, "sha256": _checksums()}
    content = {"table": table, "cut": cut, "fold": folded, "pieces": told, "encode": _encoded()}
    lines = ",\n".join(
        f"{json.dumps(k)}: {_lines(v) if isinstance(v, list) else json.dumps(v)}" for k, v in content.items()
    )
    return f"{{\n{lines}\n}}\n".encode("ascii")


def _lines(values: list[Any]) -> str:
    return "[\n" + ",\n".join(json.dumps(v) for v in values) + "\n]"
