"""Frames between a process and its child: the same arrays come out, and nothing else is taken for one."""

from __future__ import annotations

import io
import json
import struct

import numpy as np
import pytest

from pfl_mobile.engines.frames import BrokenFrameError, receive, send

ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.array(7, np.int64),
    np.zeros((0, 4), np.bool_),
    np.arange(12).reshape(3, 4).T,  # not contiguous
]


def frame(head, body=b"", *, length=None):
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack("<QQ", len(text), len(body) if length is None else length) + text + body


def test_what_is_sent_is_received():
    pipe = io.BytesIO()
    send(pipe, {"program": "p"}, ARRAYS)
    send(pipe, {"done": True})
    pipe.seek(0)
    head, arrays = receive(pipe, 1 << 20)
    assert head == {"program": "p"}
    for sent, found in zip(ARRAYS, arrays, strict=True):
        assert (found.shape, found.dtype) == (sent.shape, sent.dtype)
        np.testing.assert_array_equal(found, sent)
        assert found.flags.writeable
    assert receive(pipe, 0) == ({"done": True}, [])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        frame({"arrays": []})[:-1],
        frame({}),  # no arrays named
        frame(b"{"),
        frame([1]),
        frame({"arrays": [["float32", [2]]]}, bytes(4)),
        frame({"arrays": [["float32", [2]]]}, bytes(8), length=9),
        frame({"arrays": [["object", [1]]]}, bytes(8)),
        frame({"arrays": [["nonsense", [1]]]}, bytes(8)),
        frame({"arrays": []}, length=1 << 40),
        struct.pack("<QQ", 1 << 40, 0),
    ],
)
def test_what_is_no_frame_is_refused(data):
    with pytest.raises(BrokenFrameError):
        receive(io.BytesIO(data), 100)


def test_a_frame_larger_than_allowed_is_not_read():
    pipe = io.BytesIO()
    send(pipe, {}, [np.zeros(10, np.float32)])
    pipe.seek(0)
    with pytest.raises(BrokenFrameError, match="bytes"):
        receive(pipe, 39)
