"""Ways to spoil a file, drawn from a seeded generator."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from typing import Any

#: Values that readers trip over, for a place in JSON.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308, 1e-320,
    float("nan"), float("inf"), "", "a", "\x00", "\ud800", "\ufeff", "../x", "*" * 60, "a" * 5000, "1e9", [], {},
    [[]], {"": 0}, [None], {"a": {"b": {"c": []}}}, [0] * 3000,
)  # fmt: skip

#: Seeds of the long runs (`make fuzz`): as many as PFL_FUZZ_SEEDS says, else none.
SEEDS = range(int(os.environ.get("PFL_FUZZ_SEEDS", "0")))


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip bits, overwrite, cut, repeat, insert or extend."""
    found = bytearray(data)
    kind = rng.randrange(8)
    at = rng.randrange(len(found)) if found else 0
    if kind == 0 and found:
        for _ in range(rng.choice((1, 1, 2, 8, 64))):
            found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    elif kind == 1 and found:
        width = rng.choice((1, 2, 4, 8))
        found[at : at + width] = rng.choice((b"\x00", b"\xff", b"\x7f", b"\x80")) * width
    elif kind == 2:
        del found[at:]
    elif kind == 3:
        del found[at : at + rng.choice((1, 4, 64, 1024))]
    elif kind == 4:
        found[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
    elif kind == 5:
        found += rng.randbytes(rng.choice((1, 8, 4096)))
    elif kind == 6 and found:
        for _ in range(rng.choice((1, 4, 32))):  # words near the front, where tables and offsets lie
            place = rng.randrange(min(len(found), 2048))
            found[place : place + 4] = rng.randbytes(4)
    else:
        width = rng.choice((4, 64, 512))
        other = rng.randrange(len(found)) if found else 0
        found[at : at + width] = found[other : other + width]
    return bytes(found)


def mutate_json(value: Any, rng: random.Random) -> Any:
    """The same value with one thing in it changed: another value, a key more or less, an entry twice."""
    places: list[tuple[Any, Any]] = []
    value = json.loads(json.dumps(value))
    stack = [value] if isinstance(value, dict | list) else []
    while stack:
        node = stack.pop()
        inner = list(node.items()) if isinstance(node, dict) else list(enumerate(node))
        places += [(node, key) for key, _ in inner]
        stack += [child for _, child in inner if isinstance(child, dict | list)]
    if not places:
        return rng.choice(VALUES)
    node, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[rng.choice(("", "x", "__metadata__", "\ud800", key + "_"))] = rng.choice(VALUES)
    elif kind == 2 and isinstance(node, list):
        node.append(node[key])
    else:
        node[key] = rng.choice(VALUES)
    return value


def json_text(value: Any) -> bytes:
    """JSON as Python writes it, NaN and broken surrogates included."""
    return json.dumps(value).encode()


def deep(opening: str = "[", closing: str = "]", depth: int = 100_000) -> bytes:
    """Deeply nested JSON."""
    return (opening * depth + closing * depth).encode()


#: Whole files that no reader may trip over, by name.
WHOLE: dict[str, bytes] = {
    "empty": b"",
    "nul": b"\x00",
    "many nuls": bytes(5000),
    "not UTF-8": b"\xff\xfe\xfd{\x80",
    "a number": b"1",
    "null": b"null",
    "a string": b'"a"',
    "an empty list": b"[]",
    "an empty object": b"{}",
    "NaN": b"NaN",
    "a huge number": b"9" * 20_000,
    "a huge exponent": b"1e999999999",
    "a broken surrogate": b'{"a": "\\ud800"}',
    "raw surrogate bytes": b'{"a": "\xed\xa0\x80"}',
    "deep lists": deep(),
    "deep objects": deep('{"a":', "}"),
    "half deep": b"[" * 100_000,
    "twice the same key": b'{"a": 1, "a": 2}',
    "only a BOM": b"\xef\xbb\xbf",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x93\x94.",
    "an empty zip": b"PK\x05\x06" + bytes(18),
    "a long safetensors header": (2**62).to_bytes(8, "little") + b"{}",
}

Mutation = Callable[[bytes, random.Random], bytes]
