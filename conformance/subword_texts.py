"""subword_texts.json: many tokenizers of subwords, each with other steps, and what becomes of texts drawn by chance.

It is for a language whose tokenizers are its own (Swift); the others have the tokenizers library itself, which gives
what is here. The vocabularies are made by the rules below and not by a trainer, so that no version of one changes them.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections import Counter
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

from pfl_mobile.random import splitmix64
from pfl_mobile.text.specials import SpecialIds
from pfl_mobile.text.subwords import SubwordTokenizer

COUNT = 150
SAID = (
    "see you at the gym there and then, they say it's late: don't wait for us! "
    "The 2nd bus was at 10:45 and 1234567 people were there, we'll see... "
    "caf\u00e9 na\u00efve \u00fcber stra\u00dfe \u4f60\u597d\u4e16\u754c \u043f\u0440\u0438\u0432\u0435\u0442"
)
#: What texts are put together of: words, letters of many scripts, marks, numbers, symbols, spaces, control characters,
#: and texts of tokens.
PIECES = (
    *SAID.split(),
    *(SAID.upper().split()[:12]),
    *"aebxYZ",
    *"\u00e9\u00c5\u0130\u0131\u00df\u017f\u01c5\u03a3\u03c2\u0416\u05d0\u0627\u0915\u0e01\uac00\u3042\u30ab\u6f22",
    "\ud55c\uae00",
    "e\u0301",
    "o\u0308\u0323",
    "\u0301",
    "\u0915\u093f\u0902",
    "\u1100\u1161\u11a8",
    "\ufb01",
    "\uff21\uff12",
    "\u2460\u00bd\u00b2\u2167\u0663\u0967",
    *"0123456789",
    "007",
    "3.14",
    *"!?.,:;'\"-_()[]{}#%&*/\\@^`|~+=<>$",
    *"\u2019\u2018\u201c\u00ab\u2014\u2026\u00a1\u00bf\u3002\uff01\u20ac\u00a9\u2122\u00ac\u2581\u0120\u010a",
    "\U0001f602",
    "\U0001f469\u200d\U0001f467",
    "\U0001f44b\U0001f3fd",
    "\U00020000",
    "\U0001d49c",
    *" \u00a0\u3000\u2003\u2028\u0085\t\n\r\u000b\u000c\u200b\u200d\u200c\ufeff\ufffd\u0001\u007f\u00ad",
    "  ",
    "   ",
    "\r\n",
    " \n ",
    "[CLS]",
    "<s>",
    "</s>",
    "<mask>",
    " <mask>  ",
    "<unk>",
    "<0x41>",
    "word",
    "<Word>",
    "do not",
    "n't",
    "'s",
    "'LL",
)


def _texts() -> list[str]:
    found = []
    for number in range(COUNT):
        draw = iter(splitmix64(number, i) for i in range(100))
        count = 1 + next(draw) % 12
        text = ""
        for _ in range(count):
            text += PIECES[next(draw) % len(PIECES)]
            if next(draw) % 3 == 0:
                text += " "
        found.append(text)
    return [*found, "a" * 300, "see " * 30, " ", "\n\n\n"]


def _pairs(words: list[list[str]], count: int, join: Any) -> tuple[list[str], list[list[str]]]:
    """Pairs that stand side by side most often become one, the first in order of text among equals."""
    vocabulary = sorted({piece for word in words for piece in word})
    merges: list[list[str]] = []
    for _ in range(count):
        pairs = Counter((a, b) for word in words for a, b in pairwise(word))
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(list(best))
        whole = join(*best)
        if whole not in vocabulary:
            vocabulary.append(whole)
        for word in words:
            i = 0
            while i + 1 < len(word):
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = [whole]
                i += 1
    return vocabulary, merges


def _bytes(text: str) -> list[str]:
    """As GPT-2 writes bytes."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return list(level.pre_tokenize_str(text)[0][0])


def _added(contents: dict[str, int], **flags: bool) -> list[dict[str, Any]]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": i, "content": content, **plain, **flags} for content, i in contents.items()]


def _file(model: dict[str, Any], added: list[dict[str, Any]], **parts: Any) -> dict[str, Any]:
    rest = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder"))
    head = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    return {**head, **rest, **parts, "model": model}


def _bpe(vocabulary: list[str], merges: list[Any], **fields: Any) -> dict[str, Any]:
    plain = {
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
    }
    flags = {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    ids = {word: i for i, word in enumerate(vocabulary)}
    return {"type": "BPE", **plain, **flags, **fields, "vocab": ids, "merges": merges}


GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: A map of characters as SentencePiece compiles it (zlib, base64), of a few rules: wide forms, ligatures, spaces,
#: control characters that go, letters with marks, and A and Y as small letters.
CHARS = (
    "eNod1AdsTVEAxvHvnkuEEhEahMao2i1Ve1WJSKONRIRIRAgVlVB7xbiPlkfVrN3S1qy2VG1trRKrqE3MVySIVVJ7/W9f8nvfOfec"
    "e969ZzxVklRd7sexakjFdYwsysMwAp5QyQ/VOklVu0kjuVbczMg7Q6rRiluDpdFcGwtvZWk8mRAhtSNpduJ7GjmOLV89owTHKH0T"
    "5YZGS7KN9tJ/Kn0awfHayvCX8h5KCbTFJxvteCINom0P/QaTaWQLsvANX9UZN1Na9MBozWujtLtSFu2T3Gcmh5Onud8mqTpVUBV+"
    "yCnn2cmaqIXFtSxll9iKCLBUmzqP4dRFfTRAYpClADIQQWA6nDAwJU4XMC1OQZSlHmQvhIMpcPLn2epH9scADJ9iKZIciGis9Rql"
    "RhmllEnjWIAYMI8ag93+lmJ2Go2iHKeK99JE7C20FJdrNIFyrCrmW7MwEyyJpmOaKuZVUzAZC7EA8zHPrZdbmkvOwWws8hktRgJl"
    "z03W5pXR0vesQRnXsDzUViK8d42WNbG10t/WqgBbKygnYa2/0boZtlbH2FrDOBsm2tpIn2RyPde2cO9WbKLvZmyjbXt9WylBtlIZ"
    "J6Pc1m5+exfS/9jaQWa4ZaThAPYjB9nIwj5kuvOBYziKIziMQ8jDQeTiNE6hEAXIx0mcwHFcxLk+li6Q51Hk1nEWZ3AD13ENxbiK"
    "K7iMS7iPe2AL6g5u4xZuogTP8BRsRz3GI3echpbY6nqAFx0tlXLqfOctvXTrKIUPz/ERH/Ae79w6Z/YtyTHQa3zDV7Ct9YkX+EJ+"
    "Rplbxz/8xR/8xi/8xA98d09+YzVRUwWqmYLUnCPWUq3UWm3UVsEKUUhICMe5vUIVWuqJ76AOClNHdVJndVFXdVN3Nn5P9VJvhStC"
    "fTUkWkMjIyP5WxgXyx4rylTRUfnyk1zFXr3wJOptrkf/AXya6MY="
)


def _levels() -> dict[str, dict[str, Any]]:
    """Over bytes: as GPT-2 and RoBERTa, Llama 3, Qwen, CLIP."""
    words = [_bytes(f" {word}") for word in SAID.split() for _ in range(2)] + [
        _bytes(word) for word in SAID.split()
    ]
    vocabulary, merges = _pairs(words, 120, lambda a, b: a + b)
    vocabulary = [*sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(vocabulary)), *vocabulary]
    end = len(vocabulary)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    raw = {**level, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": GPT4}, "behavior": "Isolated", "invert": False}
    chain = {"type": "Sequence", "pretokenizers": [split, raw]}
    joined = [" ".join(pair) for pair in merges]
    mask = {**_added({"<mask>": end + 1}, lstrip=True)[0]}
    own = _added({"word": end + 2}, single_word=True, special=False, normalized=True)
    ends = [_bytes(word) for word in SAID.lower().split()]
    for word in ends:
        word[-1] += "</w>"
    small, pairs = _pairs(ends, 60, lambda a, b: a + b)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    small = [
        *letters,
        *(f"{c}</w>" for c in letters),
        *(w for w in small if w.removesuffix("</w>") not in letters),
    ]
    clip = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    return {
        "gpt2": _file(_bpe(vocabulary, joined), _added({"<s>": end}), pre_tokenizer=level, decoder=level),
        "roberta": _file(
            _bpe(vocabulary, joined),
            [*_added({"<s>": end}), mask, *own],
            pre_tokenizer={**level, "add_prefix_space": True},
            decoder=level,
        ),
        "llama3": _file(
            _bpe(vocabulary, merges, ignore_merges=True),
            _added({"<s>": end}),
            pre_tokenizer=chain,
            decoder=level,
        ),
        "qwen": _file(
            _bpe(vocabulary, merges),
            [*_added({"<s>": end}), *_added({"<Word>": end + 1}, rstrip=True)],
            normalizer={"type": "NFC"},
            pre_tokenizer=chain,
            decoder=level,
        ),
        "clip": _file(
            _bpe(small, pairs, end_of_word_suffix="</w>", unk_token="!"),
            _added({"<s>": len(small)}),
            normalizer={
                "type": "Sequence",
                "normalizers": [
                    {"type": "NFC"},
                    {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                    {"type": "Lowercase"},
                ],
            },
            pre_tokenizer={
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": clip}, "behavior": "Removed", "invert": True},
                    raw,
                ],
            },
            decoder={"type": "BPEDecoder", "suffix": "</w>"},
        ),
    }


def _spaced() -> dict[str, dict[str, Any]]:
    """BPE over characters: as Llama 2, and with prefixes."""
    names = ["<unk>", "<s>", "</s>"]
    words = [list(f"\u2581{word}") for word in SAID.split()]
    vocabulary, merges = _pairs(words, 80, lambda a, b: a + b)
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    spaces = [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ]
    back = [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    parts = [
        [c if i == 0 else f"##{c}" for i, c in enumerate(word.strip(",.!:"))] for word in SAID.lower().split()
    ]
    inner, pairs = _pairs([p for p in parts if p], 60, lambda a, b: a + b[2:])
    chain = [
        {"type": "Whitespace"},
        {"type": "Punctuation", "behavior": "Contiguous"},
        {"type": "Digits", "individual_digits": False},
    ]
    cleaned = [
        {"type": "NFD"},
        {"type": "StripAccents"},
        {"type": "Lowercase"},
        {"type": "Strip", "strip_left": True, "strip_right": True},
    ]
    return {
        "llama2": _file(
            _bpe(
                [*names, *fallback, *vocabulary],
                merges,
                unk_token="<unk>",
                fuse_unk=True,
                byte_fallback=True,
            ),
            _added(dict(zip(names, range(3), strict=True))),
            normalizer={"type": "Sequence", "normalizers": spaces},
            decoder={"type": "Sequence", "decoders": back},
        ),
        "prefixed": _file(
            _bpe([*names, *inner], pairs, unk_token="<unk>", continuing_subword_prefix="##"),
            _added(dict(zip(names, range(3), strict=True))),
            normalizer={"type": "Sequence", "normalizers": cleaned},
            pre_tokenizer={"type": "Sequence", "pretokenizers": chain},
            decoder={"type": "WordPiece", "prefix": "##", "cleanup": False},
        ),
    }


def _words() -> dict[str, dict[str, Any]]:
    """WordPiece: as BERT with and without case, and with other steps before it."""
    names = ["<unk>", "<s>", "</s>", "[CLS]"]
    letters = sorted(
        {c for c in SAID if not c.isspace()} | set("abcdefghijklmnopqrstuvwxyz0123456789'\u6f22")
    )
    pieces = ["see", "the", "there", "##re", "##ey", "th", "an", "##nd", "la", "##te", "123", "##45", "don"]
    vocabulary = [*names, *letters, *(f"##{c}" for c in letters), *pieces]
    model = {
        "type": "WordPiece",
        "unk_token": "<unk>",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 20,
    }
    model |= {"vocab": {word: i for i, word in enumerate(vocabulary)}}
    added = _added(dict(zip(names, range(4), strict=True)))
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
    decoder = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    bert = {"type": "BertPreTokenizer"}
    splits = [
        {"type": "Split", "pattern": {"String": "e"}, "behavior": "MergedWithPrevious", "invert": False},
        {"type": "Split", "pattern": {"Regex": "[aoy]"}, "behavior": "MergedWithNext", "invert": False},
        {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Contiguous", "invert": True},
        {"type": "WhitespaceSplit"},
        {"type": "CharDelimiterSplit", "delimiter": "|"},
        {"type": "Digits", "individual_digits": True},
        {"type": "Punctuation", "behavior": "MergedWithPrevious"},
    ]
    level = {"type": "WordLevel", "vocab": model["vocab"], "unk_token": "<unk>"}
    return {
        "words": _file(level, added, pre_tokenizer={"type": "Whitespace"}),
        "bert": _file(
            model,
            added,
            normalizer={**normalizer, "strip_accents": None, "lowercase": True},
            pre_tokenizer=bert,
            decoder=decoder,
        ),
        "bert-cased": _file(
            model,
            added,
            normalizer={**normalizer, "strip_accents": False, "lowercase": False},
            pre_tokenizer=bert,
            decoder=decoder,
        ),
        "splits": _file(
            model,
            added,
            normalizer={"type": "NFKD"},
            pre_tokenizer={"type": "Sequence", "pretokenizers": splits},
        ),
    }


def _unigrams() -> dict[str, dict[str, Any]]:
    """Unigram: as SentencePiece, with and without bytes of what is unknown."""
    names = ["<pad>", "<s>", "</s>", "<unk>"]
    letters = sorted({c for c in SAID if not c.isspace()} | {"\u2581"})
    pieces = [
        "\u2581the",
        "\u2581see",
        "\u2581you",
        "\u2581a",
        "re",
        "th",
        "the",
        "er",
        "ere",
        "\u2581w",
        "ll",
        "12",
        "345",
    ]
    scored = [[c, -6.0 - i / 16] for i, c in enumerate(letters)] + [
        [piece, -3.0 - i / 8] for i, piece in enumerate(pieces)
    ]
    vocabulary = [[name, 0.0] for name in names] + scored
    fallback = [[f"<0x{byte:02X}>", -9.0] for byte in range(256)]
    space = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    first = {**space, "prepend_scheme": "first", "split": False}
    folded = [
        {"type": "Nmt"},
        {"type": "NFKC"},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
    ]
    chars = base64.b64encode(zlib.decompress(base64.b64decode(CHARS))).decode()
    added = _added(dict(zip(names, range(4), strict=True)))
    return {
        "unigram": _file(
            {"type": "Unigram", "unk_id": 3, "byte_fallback": False, "vocab": vocabulary},
            added,
            normalizer={"type": "Sequence", "normalizers": folded},
            pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, space]},
            decoder=space,
        ),
        "unigram-bytes": _file(
            {"type": "Unigram", "unk_id": 3, "byte_fallback": True, "vocab": vocabulary + fallback},
            added,
            normalizer={"type": "Precompiled", "precompiled_charsmap": chars},
            pre_tokenizer=first,
            decoder={"type": "Sequence", "decoders": [{"type": "ByteFallback"}, first]},
        ),
    }


def subword_texts_file() -> bytes:
    """The content of subword_texts.json, all ASCII."""
    texts = _texts()
    found = {}
    for name, file in {**_levels(), **_spaced(), **_words(), **_unigrams()}.items():
        content = json.dumps(file)
        known = Tokenizer.from_str(content).get_vocab()
        start = known["<s>"]
        unknown = known.get("<unk>", known.get("!", -1) if name == "clip" else -1)
        specials = SpecialIds(start, start, start, unknown)
        tokenizer = SubwordTokenizer(content, specials)
        ids = [[tokenizer.id(piece) for piece in tokenizer.words(text)] for text in texts]
        found[name] = {
            "tokenizer": content,
            "specials": vars(specials),
            "ids": ids,
            "decoded": [tokenizer.text(i) for i in ids],
        }
    return (json.dumps({"texts": texts, "tokenizers": found}) + "\n").encode("ascii")
