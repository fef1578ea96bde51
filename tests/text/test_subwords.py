"""Tokenizers of subwords, made here by the library's trainers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from pfl_mobile.errors import ConfigError, DataError, OutOfVocabularyError
from pfl_mobile.text.blocked import BlockList
from pfl_mobile.text.encoder import SubwordTokenizer, TextEncoder
from pfl_mobile.text.specials import SpecialIds

TEXTS = ["see you there", "see you at the gym", "they see the gym there", "you and they"] * 3
NAMES = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
IDS = SpecialIds(0, 1, 2, 3)


def bpe() -> Tokenizer:
    """Over bytes, as GPT-2: no unknown token."""
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    found.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=NAMES[:3], initial_alphabet=alphabet)
    )
    return found


def wordpiece() -> Tokenizer:
    """As BERT, with its template, truncation and padding, none of which is used."""
    found = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    found.normalizer = normalizers.BertNormalizer()
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    found.decoder = decoders.WordPiece()
    found.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=40, special_tokens=NAMES))
    found.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    found.enable_truncation(3)
    found.enable_padding(length=3)
    return found


def unigram() -> Tokenizer:
    """As SentencePiece."""
    found = Tokenizer(models.Unigram())
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    found.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=40, special_tokens=NAMES, unk_token="[UNK]")
    found.train_from_iterator(TEXTS, trainer)
    return found


KINDS = {"bpe": (bpe, SpecialIds(0, 1, 2)), "wordpiece": (wordpiece, IDS), "unigram": (unigram, IDS)}


def subwords(kind: str) -> SubwordTokenizer:
    make, specials = KINDS[kind]
    return SubwordTokenizer(make().to_str(), specials)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_the_librarys_and_nothing_is_cut_off_or_added(kind: str) -> None:
    tokenizer = subwords(kind)
    encoder = TextEncoder(tokenizer, 8, tokenizer.size)
    library = Tokenizer.from_str(tokenizer.to_json())
    library.no_truncation()
    library.no_padding()
    text = "they see you there and at the gym"
    ids = encoder.ids(text)
    assert ids == library.encode(text, add_special_tokens=False).ids
    assert len(ids) > 3
    assert (
        encoder.decode(ids) == tokenizer.words(text) == library.encode(text, add_special_tokens=False).tokens
    )
    assert tokenizer.text(ids).strip() == text


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_cannot_be_typed(kind: str) -> None:
    tokenizer = subwords(kind)
    encoder = TextEncoder(tokenizer, 8, tokenizer.size)
    ids = encoder.ids("[CLS] see [SEP][PAD] you \ud83d 😂")
    assert not {0, 1, 2} & set(ids)
    assert all(0 <= i < tokenizer.size for i in ids)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_begin_and_end_with_the_files_own_tokens(kind: str) -> None:
    tokenizer = subwords(kind)
    specials = tokenizer.specials
    encoder = TextEncoder(tokenizer, 16, tokenizer.size)
    rows = encoder.encode(["see you", ""])
    ids = encoder.ids("see you")
    n = len(ids)
    assert rows["tokens"][0, : n + 1].tolist() == [specials.bos, *ids]
    assert rows["labels"][0, : n + 1].tolist() == [*ids, specials.eos]
    assert (rows["tokens"][0, n + 1 :] == specials.pad).all()
    assert rows["weight"].sum() == n


def test_what_has_no_token_is_unknown_and_left_out_of_training() -> None:
    encoder = TextEncoder(subwords("unigram"), 8, 40)
    assert 3 in encoder.ids("see 漢")
    assert encoder.encode(["漢"], drop_unknown=True)["weight"].sum() < encoder.encode(["漢"])["weight"].sum()
    assert TextEncoder(subwords("bpe"), 8, 400).unknown == -1


def test_symbols_are_not_words() -> None:
    tokenizer = subwords("bpe")
    for piece in tokenizer.words("see you! 7 ..."):
        assert tokenizer.is_symbol(piece) == (
            not any(c.isalnum() for c in tokenizer.text([tokenizer.id(piece)]))
        )


def test_slots_over_subwords_are_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match="subwords") as found:
        TextEncoder(subwords("bpe"), 8, 400, slots=4)
    assert "WordTokenizer" in str(found.value.mend)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_learned_from_a_text_with_a_blocked_word(kind: str) -> None:
    tokenizer = subwords(kind)
    encoder = TextEncoder(tokenizer, 16, tokenizer.size).with_blocked(BlockList().plus(["gym"]))
    assert encoder.encode(["see you at the Gym", "see you"])["tokens"].shape == (1, 16)
    assert encoder.choose_words(["gym gym zorp zorp"]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_spellings_of_a_word_hold_its_parts_wherever_it_stands(kind: str) -> None:
    tokenizer = subwords(kind)
    ids = tokenizer.spellings(["gym"])
    for text in ("gym", "see gym", "GYM", "see Gym"):
        end = [tokenizer.id(p) for p in tokenizer.words(text)][len(tokenizer.words(text[:-3])) :]
        assert {i for i in end if not tokenizer.is_symbol(tokenizer.word(i))} <= ids


def test_bad_files_are_errors(tmp_path: Path) -> None:
    good = wordpiece().to_str()
    for text in (
        "",
        "{}",
        "[]",
        '{"model": {"vocab": {"a": "b"}}}',
        '{"model": {"vocab": {"a": 2147483648}}}',
    ):
        with pytest.raises(DataError, match=r"tokenizer\.json"):
            SubwordTokenizer(text, IDS)
    with pytest.raises(DataError, match="bos 99"):
        SubwordTokenizer(good, SpecialIds(0, 99, 2, 3))
    with pytest.raises(DataError, match="cannot read"):
        SubwordTokenizer.load(tmp_path / "none.json", IDS)
    (tmp_path / "t.json").write_text(good)
    loaded = SubwordTokenizer.load(tmp_path / "t.json", IDS)
    assert json.loads(loaded.to_json()) == json.loads(good)
    with pytest.raises(OutOfVocabularyError):
        loaded.word(loaded.size)
    lame = Tokenizer(models.WordPiece({"a": 0}, unk_token="[UNK]"))
    with pytest.raises(DataError, match="unknown token"):
        SubwordTokenizer(lame.to_str(), SpecialIds(0, 0, 0)).words("b")


def test_the_largest_files_in_use_are_read() -> None:
    """Gemma's has 2.1 million values, more than other files may; what stands in a string counts as values, too."""
    file = json.loads(bpe().to_str())
    size = len(file["model"]["vocab"])
    file["model"]["vocab"]["," * 2_100_000] = size
    assert SubwordTokenizer(json.dumps(file), SpecialIds(0, 1, 2)).size == size + 1
    file["model"]["vocab"]["," * 8_100_000] = size + 1
    with pytest.raises(DataError, match="more than 8000000 values"):
        SubwordTokenizer(json.dumps(file), SpecialIds(0, 1, 2))
