"""Files with a digest of their tensors and head: damage of either is seen, and versions are told apart."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pfl_mobile.errors import NewerFileError, NonFiniteError, TensorFileError
from pfl_mobile.files.sealed import damaged_head, digest, seal, unseal
from pfl_mobile.files.tensors import tensors_to_bytes

TENSORS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array([3], np.int64)}
HEAD = json.dumps({"schema_version": 1, "round": 7})


def test_a_file_gives_back_what_it_was_made_of():
    tensors, head = unseal(seal(TENSORS, HEAD, form="f"), form="f", schema_version=1, what="it")
    assert head == {"schema_version": 1, "round": 7}
    for name, value in TENSORS.items():
        np.testing.assert_array_equal(tensors[name], value)


def test_the_same_content_has_the_same_bytes():
    assert seal(TENSORS, HEAD, form="f") == seal(dict(reversed(TENSORS.items())), HEAD, form="f")


def test_a_flipped_bit_of_a_value_is_seen():
    data = bytearray(seal(TENSORS, HEAD, form="f"))
    data[-1] ^= 1
    with pytest.raises(TensorFileError, match="digest"):
        unseal(bytes(data), form="f", schema_version=1, what="it")


def test_a_changed_head_is_seen():
    data = seal(TENSORS, HEAD, form="f")
    changed = data.replace(b"7}", b"8}")
    assert changed != data
    with pytest.raises(TensorFileError, match="digest"):
        unseal(changed, form="f", schema_version=1, what="it")


@pytest.mark.parametrize("form", ["g", None])
def test_another_format_is_refused(form):
    with pytest.raises(TensorFileError):
        unseal(seal(TENSORS, HEAD, form="f"), form=form, schema_version=1, what="it")


def test_a_newer_schema_asks_for_an_update():
    data = seal(TENSORS, '{"schema_version": 2}', form="f")
    with pytest.raises(NewerFileError, match="schema 2"):
        unseal(data, form="f", schema_version=1, what="it")


@pytest.mark.parametrize("head", ["[]", '{"schema_version": "1"}', '{"schema_version": true}', "{"])
def test_a_head_that_is_none_is_refused_though_its_digest_fits(head):
    data = tensors_to_bytes(TENSORS, metadata={"head": head, "sha256": digest(TENSORS, head), "format": "f"})
    with pytest.raises(TensorFileError, match="head of it is damaged"):
        unseal(data, form="f", schema_version=1, what="it")


def test_values_that_are_not_finite_are_refused_where_that_is_asked_for():
    bad = {"w": np.array([np.nan], np.float32)}
    seal(bad, HEAD, form="f")
    with pytest.raises(NonFiniteError):
        seal(bad, HEAD, form="f", finite=True)


def test_the_digest_tells_names_shapes_types_and_the_text_apart():
    one = {"a": np.zeros(2, np.float32)}
    others = [
        {"b": np.zeros(2, np.float32)},
        {"a": np.zeros((1, 2), np.float32)},
        {"a": np.zeros(2, np.int32)},
        {"a": np.zeros(3, np.float32)},
    ]
    found = {digest(x) for x in (one, *others)} | {digest(one, "t")}
    assert len(found) == 6
    assert digest({"a": np.zeros(2, ">f4")}) == digest(one), "the byte order of this machine does not count"


def test_what_goes_wrong_with_a_head_is_damage():
    with pytest.raises(TensorFileError, match=r"the head of it is damaged: KeyError"), damaged_head("it"):
        {}["missing"]
    with pytest.raises(ZeroDivisionError), damaged_head("it"):
        raise ZeroDivisionError
