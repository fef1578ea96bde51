"""Update files: what is written is read again, what is not canonical is refused, nothing else happens."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from pfl_mobile.errors import NonFiniteError, TensorMismatchError, UpdateFileError, UpdateTensorsError
from pfl_mobile.protocol.bodies import UpdateHead
from pfl_mobile.protocol.update_file import (
    canonical,
    encode,
    header_limit,
    parse_prefix,
    payload_offset,
    size_limit,
)

TASK = "0123456789abcdef" * 2
HEAD = UpdateHead(task=TASK, round=3, version=2, examples=17, steps=5, reports={"sent_loss": 0.25})
LAYOUT = canonical({"b.lora_A": (2, 3), "a": (4,), "é": (), "copy:c_i:a": (4,), "\U0001f600": (0, 2)})


def tensors(layout=LAYOUT):
    return {n: np.arange(p.start, p.stop, dtype=np.float32).reshape(s) for n, p, s in layout.items()}


def rewritten(change, layout=LAYOUT):
    """An update whose header is changed by a function of its dict (or that is replaced by bytes)."""
    data = encode(HEAD, tensors(layout), layout)
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    text = change(header)
    text = text if isinstance(text, bytes) else json.dumps(header if text is None else text).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def parse(data, layout=LAYOUT):
    return parse_prefix(data, layout, len(data))


def test_an_update_is_read_as_it_was_written():
    data = encode(HEAD, tensors(), LAYOUT)
    head, offset = parse(data)
    assert head == HEAD
    assert offset % 8 == 0
    assert offset == payload_offset(LAYOUT, len(data))
    assert np.array_equal(np.frombuffer(data, "<f4", offset=offset), np.arange(LAYOUT.size))
    assert len(data) <= size_limit(LAYOUT)


def test_the_values_are_not_looked_at():
    data = encode(HEAD, tensors(), LAYOUT)
    offset = payload_offset(LAYOUT, len(data))
    assert parse_prefix(data[:offset], LAYOUT, len(data)) == (HEAD, offset)


def test_names_are_sorted_by_their_utf8_bytes():
    names = ["z", "é", "a", "\uffff", "\U0001f600", "copy:c:a"]
    # In UTF-16 the emoji would come before U+FFFF.
    assert list(canonical(dict.fromkeys(names, (1,))).shapes) == [
        "a",
        "copy:c:a",
        "z",
        "é",
        "\uffff",
        "\U0001f600",
    ]


def test_the_safetensors_library_reads_it_and_writes_the_same_order():
    data = encode(HEAD, tensors(), LAYOUT)
    found = safetensors.numpy.load(data)
    assert {n: v.tolist() for n, v in found.items()} == {n: v.tolist() for n, v in tensors().items()}
    head = json.dumps(HEAD.model_dump(mode="json"))
    theirs = safetensors.numpy.save(tensors(), {"format": "pfl-update", "head": head})
    assert parse(theirs)[0] == HEAD


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("a"),
        lambda t: t.update(more=np.zeros(1, np.float32)),
        lambda t: t.update(a=np.zeros(5, np.float32)),
        lambda t: t.update(a=np.zeros(4)),
    ],
)
def test_other_tensors_are_not_written(change):
    given_ = tensors()
    change(given_)
    with pytest.raises(TensorMismatchError):
        encode(HEAD, given_, LAYOUT)


def test_what_is_not_finite_is_not_written():
    with pytest.raises(NonFiniteError):
        encode(HEAD, tensors() | {"a": np.full(4, np.nan, np.float32)}, LAYOUT)


def test_reports_that_are_too_long_are_not_written():
    long = HEAD.model_copy(update={"reports": {"x" * header_limit(LAYOUT): 1.0}})
    with pytest.raises(UpdateFileError):
        encode(long, tensors(), LAYOUT)


WRONG_TENSORS = {
    "a tensor is missing": lambda h: h.pop("a") and None,
    "a tensor too many": lambda h: h.update(x=h["a"]),
    "an empty tensor too many": lambda h: h.update(x={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}),
    "another dtype": lambda h: h["a"].update(dtype="I32"),
    "another shape": lambda h: h["a"].update(shape=[2, 2]),
    "a negative size": lambda h: h["a"].update(shape=[-4]),
    "a size that is true": lambda h: h["a"].update(shape=[True]),
    "a float size": lambda h: h["a"].update(shape=[4.0]),
    "a shape that is text": lambda h: h["a"].update(shape="4"),
    "a huge size": lambda h: h["a"].update(shape=[10**300]),
    "offsets that overlap": lambda h: h["b.lora_A"].update(data_offsets=[0, 24]),
    "offsets with a gap": lambda h: h["a"].update(data_offsets=[8, 24]),
    "offsets in another order": lambda h: h.update(a=h["copy:c_i:a"], **{"copy:c_i:a": h["a"]}),
    "float offsets": lambda h: h["a"].update(data_offsets=[0.0, 16.0]),
}
MALFORMED = {
    "no metadata": lambda h: h.pop("__metadata__") and None,
    "another format": lambda h: h["__metadata__"].update(format="pt"),
    "metadata too many": lambda h: h["__metadata__"].update(note="hello"),
    "metadata that is a list": lambda h: h.update(__metadata__=[]),
    "a head that is no text": lambda h: h["__metadata__"].update(head={}),
    "a head that is no JSON": lambda h: h["__metadata__"].update(head="{"),
    "a head with a lone surrogate": lambda h: h["__metadata__"].update(head="\ud800"),
    "an entry too many": lambda h: h["a"].update(strides=[4]),
    "an entry that is a list": lambda h: h.update(a=[]),
    "a list": lambda h: [],
    "no object first": lambda h: b" " + json.dumps(h).encode(),
    "not UTF-8": lambda h: b"{\xff}",
    "a key twice": lambda h: json.dumps(h).replace('"dtype"', '"dtype": "F32", "dtype"', 1).encode(),
    "a tensor twice": lambda h: (json.dumps(h)[:-1] + ', "a": ' + json.dumps(h["a"]) + "}").encode(),
    "NaN": lambda h: json.dumps(h).replace("[0, 16]", "[NaN, 16]").encode(),
    "an integer of 5000 digits": lambda h: json.dumps(h).replace("[0, 16]", f"[{'9' * 5000}, 16]").encode(),
    "deep nesting": lambda h: b'{"a": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
    "something after the object": lambda h: json.dumps(h).encode() + b" {}",
}
HEADS = {
    "a field is missing": lambda h: h.pop("task"),
    "a field too many": lambda h: h.update(user="ann"),
    "a task that is none": lambda h: h.update(task="../../x"),
    "a number below zero": lambda h: h.update(examples=-1),
    "a huge number": lambda h: h.update(examples=2**60),
    "a number as text": lambda h: h.update(round="3"),
    "a number that is true": lambda h: h.update(steps=True),
    "clipped as a number": lambda h: h.update(clipped=1),
    "a report that is infinite": lambda h: h.update(reports={"sent_loss": float("inf")}),
    "a report that is text": lambda h: h.update(reports={"sent_loss": "1"}),
    "too many reports": lambda h: h.update(reports={str(i): 1.0 for i in range(65)}),
}


@pytest.mark.parametrize("change", WRONG_TENSORS.values(), ids=WRONG_TENSORS)
def test_other_tensors_are_refused(change):
    with pytest.raises(UpdateTensorsError):
        parse(rewritten(change))


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED)
def test_what_is_malformed_is_refused(change):
    with pytest.raises(UpdateFileError):
        parse(rewritten(change))


@pytest.mark.parametrize("change", HEADS.values(), ids=HEADS)
def test_an_invalid_head_is_refused(change):
    def edit(header):
        head = json.loads(header["__metadata__"]["head"])
        change(head)
        header["__metadata__"]["head"] = json.dumps(head)

    with pytest.raises(UpdateFileError):
        parse(rewritten(edit))


def test_another_length_is_refused():
    data = encode(HEAD, tensors(), LAYOUT)
    for other in (data + b"\0", data + b"\0" * 8, data[:-4], data[:-1], b"", data[:7]):
        with pytest.raises(UpdateFileError):
            parse(other)


def test_a_header_of_another_length_than_it_says_is_refused():
    data = encode(HEAD, tensors(), LAYOUT)
    for length in (0, 8, 2**63, 2**64 - 1):
        with pytest.raises(UpdateFileError):
            parse(struct.pack("<Q", length) + data[8:])


def test_a_header_that_is_too_long_is_refused_before_it_is_parsed():
    with pytest.raises(UpdateTensorsError):
        payload_offset(LAYOUT, size_limit(LAYOUT) + 8)
    with pytest.raises(UpdateFileError):
        parse(rewritten(lambda h: json.dumps(h).encode() + b" " * (header_limit(LAYOUT) + 8)))


VALID = encode(HEAD, tensors(), LAYOUT)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 3), st.binary(max_size=12)),
        min_size=1,
        max_size=6,
    )
)
def test_changed_files_are_read_alike_or_refused_with_a_typed_error(edits):
    data = bytearray(VALID)
    for at, kind, new in edits:
        at = min(at, len(data))
        if kind == 0:
            data[at : at + len(new)] = new
        elif kind == 1:
            data[at:at] = new
        elif kind == 2:
            del data[at : at + len(new)]
        else:
            data[at : at + 1] = bytes([data[at] ^ 1 << (len(new) % 8)]) if at < len(data) else b""
    try:
        head, offset = parse(bytes(data))
    except UpdateFileError as error:
        str(error).encode()  # it can be sent as text
    else:
        assert len(data) - offset == 4 * LAYOUT.size
        assert isinstance(head, UpdateHead)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_random_bytes_are_refused_with_a_typed_error(data, sized):
    """Also with the right length in front, so that the JSON is reached."""
    if sized:
        text = data + b" " * (-len(data) % 8)
        data = struct.pack("<Q", len(text)) + text + bytes(4 * LAYOUT.size)
    with pytest.raises(UpdateFileError):
        parse(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*LAYOUT.shapes, "__metadata__", "new"]), json_values, st.data())
def test_any_json_in_the_place_of_an_entry_is_refused_with_a_typed_error(name, value, data):
    def change(header):
        if data.draw(st.booleans()) and isinstance(header.get(name), dict):
            header[name][data.draw(st.sampled_from([*header[name], "new"]))] = value
        else:
            header[name] = value

    before = json.loads(VALID[8 : payload_offset(LAYOUT, len(VALID))])
    after = {}

    def note(header):
        change(header)
        after.update(header)

    changed = rewritten(note)
    if after == before:
        return
    with pytest.raises(UpdateFileError):
        parse(changed)
