"""subwords.json: small tokenizers of subwords, as their files read, and what becomes of texts.

The vocabularies are written down and not trained, so that no version of a trainer changes them.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import pre_tokenizers

from pfl_mobile.text.blocked import BlockList
from pfl_mobile.text.encoder import SubwordTokenizer, TextEncoder
from pfl_mobile.text.specials import SpecialIds

TEXTS = (
    "see you there",
    "See you at the gym!",
    "unsee  the\tgyms,\nthen",
    "[CLS] see [SEP][PAD] you [UNK] <|end|><|end|>",
    "caf\u00e9 \u6211 \U0001f602 hi \ud83d there \ud83d\ude02",
    "don\u2019t 'see'",
    "zzzz",
    "",
    " ",
    "the the the the the the the the the the",
)


def _file(model: dict[str, Any], added: dict[str, int], **parts: Any) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokens = [{"id": i, "content": content, **flags} for content, i in added.items()]
    head = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens}
    rest = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return {**head, **rest, **parts, "model": model}


def _ids(words: list[str]) -> dict[str, int]:
    return {word: i for i, word in enumerate(words)}


def _byte_level() -> tuple[dict[str, Any], SpecialIds]:
    """As GPT-2: over bytes, without an unknown token; one token is padding, start and end."""
    merges = [
        ("t", "h"),
        ("th", "e"),
        ("\u0120", "the"),
        ("e", "e"),
        ("s", "ee"),
        ("\u0120", "see"),
        ("y", "o"),
        ("yo", "u"),
    ]
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    model |= {"vocab": _ids(words), "merges": [list(pair) for pair in merges]}
    end = len(words)
    return _file(model, {"<|end|>": end}, pre_tokenizer=level, decoder=level), SpecialIds(end, end, end)


def _wordpiece() -> tuple[dict[str, Any], SpecialIds]:
    """As BERT, with a template, truncation and padding that a device must not use."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    letters = [*"abcdehimnoprstuvy!,'", *(f"##{c}" for c in "abcdehimnoprstuvy")]
    words = [
        *names,
        "see",
        "you",
        "the",
        "gym",
        "at",
        "##re",
        "##s",
        "un",
        *(w for w in letters if w != "##s"),
    ]
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    model |= {"max_input_chars_per_word": 100, "vocab": _ids(words)}
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
    normalizer |= {"strip_accents": None, "lowercase": True}
    return (
        _file(
            model,
            _ids(names),
            normalizer=normalizer,
            pre_tokenizer={"type": "BertPreTokenizer"},
            post_processor={"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
            decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
        )
        | {
            "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
            "padding": {
                "strategy": {"Fixed": 6},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "[PAD]",
            },
        },
        SpecialIds(0, 2, 3, 1),
    )


def _unigram() -> tuple[dict[str, Any], SpecialIds]:
    """As SentencePiece."""
    names = ["<pad>", "<s>", "</s>", "<unk>"]
    scored = [
        ("\u2581the", -2.0),
        ("\u2581see", -2.5),
        ("\u2581you", -2.5),
        ("re", -4.0),
        ("\u2581", -3.0),
        ("gym", -3.5),
    ]
    scored += [(c, -6.0 - i / 16) for i, c in enumerate("acdehimnorstuvyz!,'")]
    model = {"type": "Unigram", "unk_id": 3, "byte_fallback": False}
    model |= {"vocab": [[name, 0.0] for name in names] + [[word, score] for word, score in scored]}
    space = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    return _file(model, _ids(names), pre_tokenizer=space, decoder=space), SpecialIds(0, 1, 2, 3)


def subword_file() -> bytes:
    """The content of subwords.json, all ASCII."""
    found = {}
    for name, (file, specials) in {
        "bpe": _byte_level(),
        "wordpiece": _wordpiece(),
        "unigram": _unigram(),
    }.items():
        content = json.dumps(file)
        tokenizer = SubwordTokenizer(content, specials)
        encoder = TextEncoder(tokenizer, 6, tokenizer.size)
        blocking = encoder.with_blocked(BlockList().plus(["gym"]))
        ids = [encoder.ids(text) for text in TEXTS]
        rows = encoder.encode(TEXTS, drop_unknown=True, words_only=True)
        found[name] = {
            "tokenizer": content,
            "specials": vars(specials),
            "ids": ids,
            "decoded": [tokenizer.text(i) for i in ids],
            "rows": {key: value.tolist() for key, value in rows.items()},
            "rows_without_gym": len(blocking.encode(TEXTS)["tokens"]),
            "spellings_of_gym": sorted(tokenizer.spellings(["gym"])),
        }
    return (json.dumps({"texts": TEXTS, "length": 6, "blocked": "gym", "tokenizers": found}) + "\n").encode(
        "ascii"
    )
