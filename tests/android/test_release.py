"""What a shrunk build must have is found in it, and missed where it is not."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.android.scripts import loaded


@pytest.fixture(scope="module")
def release() -> Iterator[ModuleType]:
    with loaded("release") as module:
        yield module


def dex(classes: list[str], members: tuple[str, ...]) -> bytes:
    """A file of Android's code with a table of strings and one of classes, and nothing in them."""
    names = [*(f"L{name};" for name in classes), *members]
    data = b"".join(bytes([len(name)]) + name.encode() + b"\0" for name in names)
    strings, types = 0x70, 0x70 + 4 * len(names)
    defined = types + 4 * len(classes)
    start = defined + 32 * len(classes)
    places, at = [], start
    for name in names:
        places.append(at)
        at += len(name) + 2
    header = bytearray(0x70)
    struct.pack_into("<II", header, 0x38, len(names), strings)
    struct.pack_into("<II", header, 0x40, len(classes), types)
    struct.pack_into("<II", header, 0x60, len(classes), defined)
    table = struct.pack(f"<{len(names)}I", *places) + struct.pack(f"<{len(classes)}I", *range(len(classes)))
    return (
        bytes(header) + table + b"".join(struct.pack("<8I", i, *[0] * 7) for i in range(len(classes))) + data
    )


MODULE = "org/pytorch/executorch/Module"


def test_nothing_is_lost_where_everything_is_there(release: ModuleType) -> None:
    code = dex([*release.NAMED, MODULE], release.MEMBERS)
    assert release.defined(code) == {*release.NAMED, MODULE}
    assert release.lost([code], release.FILES, [MODULE, "okio/Buffer"]) == []


def test_each_thing_that_is_gone_is_named(release: ModuleType) -> None:
    code = dex([*release.NAMED[1:]], release.MEMBERS[1:])
    want = sorted([MODULE, release.NAMED[0], release.MEMBERS[0], *release.FILES])
    assert release.lost([code], [], [MODULE, "okio/Buffer"]) == want


def test_a_class_that_is_only_mentioned_is_not_defined(release: ModuleType) -> None:
    code = dex([*release.NAMED], (*release.MEMBERS, f"L{MODULE};"))
    assert release.lost([code], release.FILES, [MODULE]) == [MODULE]
