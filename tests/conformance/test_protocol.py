"""The vectors of the protocol follow from what is written about it."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from pfl_mobile.errors import UpdateFileError, UpdateTensorsError
from pfl_mobile.plan.upload import UpdateLayout
from pfl_mobile.protocol import bodies
from pfl_mobile.protocol.answers import judge
from pfl_mobile.protocol.update_file import encode, parse_prefix

FOLDER = Path(__file__).parents[2] / "conformance"
UPDATES = json.loads((FOLDER / "updates.json").read_text())
LAYOUT = UpdateLayout({t["name"]: tuple(t["shape"]) for t in UPDATES["layout"]})
CODES = {"wrong-tensors": UpdateTensorsError, "malformed-update": UpdateFileError}


def floats(text):
    return [struct.unpack(">f", bytes.fromhex(word))[0] for word in text.split()]


def test_the_layout_is_in_order_of_utf8():
    names = [t["name"].encode() for t in UPDATES["layout"]]
    assert names == sorted(names)
    assert [n.decode() for n in names] != sorted(
        (n.decode() for n in names), key=lambda n: n.encode("utf-16-be")
    )


def test_a_valid_update_is_read_and_written_alike():
    valid = UPDATES["valid"]
    data = (FOLDER / valid["file"]).read_bytes()
    head, offset = parse_prefix(data, LAYOUT, len(data))
    assert head.model_dump(mode="json") == valid["head"]
    assert offset == valid["payload_offset"]
    found = np.frombuffer(data, "<f4", offset=offset)
    assert [f"{x:08x}" for x in found.view(np.uint32)] == valid["values"].split()
    assert encode(head, LAYOUT.unpack(found), LAYOUT) == data


@pytest.mark.parametrize("case", UPDATES["refused"], ids=lambda case: case["file"])
def test_update_files_are_refused_by_their_code(case):
    data = (FOLDER / case["file"]).read_bytes()
    if (
        case["refused"] == "update-not-finite"
    ):  # the header is fine, the values are looked at when all have come
        _, offset = parse_prefix(data, LAYOUT, len(data))
        assert not np.isfinite(np.frombuffer(data, "<f4", offset=offset)).all()
        return
    with pytest.raises(UpdateFileError) as caught:
        parse_prefix(data, LAYOUT, len(data))
    assert type(caught.value) is CODES[case["refused"]]


def test_clipping_follows_from_its_description():
    for case in json.loads((FOLDER / "clip.json").read_text()):
        values, sent = floats(case["values"]), floats(case["sent"])
        norm = math.sqrt(math.fsum(x * x for x in values))
        assert struct.unpack(">d", bytes.fromhex(case["norm"]))[0] == pytest.approx(norm, rel=1e-12)
        assert math.sqrt(math.fsum(x * x for x in sent)) <= case["clip_norm"] or not case["clipped"]
        # Longer by more than a millionth is cut, shorter by as much is not.
        assert case["clipped"] == (norm * (1 + 2.0**-20) > case["clip_norm"])
        if not case["clipped"]:
            assert sent == values


@pytest.mark.parametrize("name", sorted(json.loads((FOLDER / "protocol.json").read_text())["valid"]))
def test_bodies_are_read_and_written_alike(name):
    file = json.loads((FOLDER / "protocol.json").read_text())
    body = getattr(bodies, name)
    for value in file["valid"][name]:
        parsed = body.model_validate_json(json.dumps(value))
        again = json.loads(parsed.model_dump_json(by_alias=True))
        assert {k: v for k, v in again.items() if k in value} == value or name in ("Enrolment", "CheckIn")
        assert body.model_validate(again) == parsed
    for value in file["refused"].get(name, []):
        with pytest.raises(ValidationError):
            body.model_validate_json(json.dumps(value))


@pytest.mark.parametrize(
    "case",
    json.loads((FOLDER / "protocol.json").read_text())["answers"],
    ids=lambda c: f"{c['status']}-{c['is']}",
)
def test_answers_follow_from_what_is_written_about_them(case):
    headers, status = {k.lower(): v.strip() for k, v in case["headers"].items()}, case["status"]
    assert judge(status, case["headers"]) == (case["is"], case["then"])
    ours = headers.get("pfl-protocol") == "1"
    # no word of something else is ever taken for the aggregator's
    assert (case["then"] in ("use", "decide-by-code") or case["is"] == "problem") <= ours
    if "pfl-protocol" in headers and not ours:
        assert (case["is"], case["then"]) == ("other-protocol", "end")
    if not 200 <= status < 300:
        assert case["then"] != "use"
    if case["then"] == "retry":
        assert status in (408, 425, 429) or status >= 500
