"""Downloads: conditions, ranges, resumption."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import pytest

from pfl_server.identity import credentials
from pfl_server.storage.models import Assignment
from tests.server.conftest import Server, device_of
from tests.server.web.api.test_enrolment import _round

#: The same in all processes that share the tests, as names of tests hold its digest.
CONTENT = random.Random(0).randbytes(2_500_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
URL = f"/v1/sets/{DIGEST}"
TAG = f'"{DIGEST}"'
SIZE = len(CONTENT)


@pytest.fixture
def stored(server: Server) -> Server:
    server.services.blobs.put(f"sets/{DIGEST}", CONTENT)
    server.client.headers.update(server.enrol())
    return server


def _get(server: Server, **headers: str) -> Any:
    return server.client.get(URL, headers={name.replace("_", "-"): value for name, value in headers.items()})


def test_the_whole_set_comes_with_its_digest_as_etag(stored: Server) -> None:
    answer = _get(stored)
    assert (answer.status_code, answer.content == CONTENT) == (200, True)
    assert answer.headers["etag"] == TAG
    assert answer.headers["content-length"] == str(SIZE)
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-type"] == "application/vnd.safetensors"
    assert "immutable" in answer.headers["cache-control"]


def test_head_tells_the_size_without_the_content(stored: Server) -> None:
    answer = stored.client.head(URL, headers={"Range": "bytes=0-1"})
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(SIZE)
    assert answer.headers["etag"] == TAG


@pytest.mark.parametrize(
    ("range_", "first", "last"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=100-", 100, SIZE),
        ("bytes=-100", SIZE - 100, SIZE),
        ("bytes=-99999999", 0, SIZE),
        (f"bytes=100-{SIZE + 1000}", 100, SIZE),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE),
    ],
)
def test_a_part_can_be_asked_for(stored: Server, range_: str, first: int, last: int) -> None:
    answer = _get(stored, Range=range_)
    assert answer.status_code == 206
    assert answer.headers["content-range"] == f"bytes {first}-{last - 1}/{SIZE}"
    assert answer.headers["content-length"] == str(last - first)
    assert answer.content == CONTENT[first:last]


@pytest.mark.parametrize("range_", [f"bytes={SIZE}-", f"bytes={SIZE + 5}-{SIZE + 9}", "bytes=-0"])
def test_a_part_that_is_not_there_is_refused_with_the_size(stored: Server, range_: str) -> None:
    answer = _get(stored, Range=range_)
    assert (answer.status_code, answer.json()["code"]) == (416, "bad-range")
    assert answer.headers["content-range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize(
    "range_", ["bytes=5-2", "bytes=-", "bytes=a-b", "items=0-1", "bytes=0-1,4-5", "bytes=0-1-2", ""]
)
def test_a_range_that_makes_no_sense_is_ignored(stored: Server, range_: str) -> None:
    answer = _get(stored, Range=range_)
    assert (answer.status_code, len(answer.content)) == (200, SIZE)


def test_if_range_with_the_same_content_gives_the_part(stored: Server) -> None:
    assert _get(stored, Range="bytes=5-9", If_Range=TAG).status_code == 206


@pytest.mark.parametrize("tag", ['"other"', f"W/{TAG}", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_if_range_with_other_content_gives_the_whole(stored: Server, tag: str) -> None:
    answer = _get(stored, Range=f"bytes={SIZE + 5}-", If_Range=tag)
    assert (answer.status_code, len(answer.content)) == (200, SIZE)


@pytest.mark.parametrize("tags", [TAG, f"W/{TAG}", "*", f'"a", {TAG}', f'W/"b" ,{TAG}'])
def test_what_the_client_has_is_not_sent_again(stored: Server, tags: str) -> None:
    answer = _get(stored, If_None_Match=tags, Range="bytes=0-1")
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["etag"] == TAG


@pytest.mark.parametrize("tags", ['"a"', DIGEST, ""])
def test_what_the_client_has_not_is_sent(stored: Server, tags: str) -> None:
    assert _get(stored, If_None_Match=tags).status_code == 200


def test_a_download_that_breaks_off_at_random_places_ends_up_whole(stored: Server) -> None:
    generator = random.Random(7)
    have = b""
    while len(have) < SIZE:
        part = _get(stored, Range=f"bytes={len(have)}-", If_Range=TAG)
        assert part.status_code == 206
        have += part.content[: generator.randint(1, 400_000)]
    assert hashlib.sha256(have).hexdigest() == DIGEST


def test_an_admin_may_download(stored: Server) -> None:
    assert stored.client.get(URL, headers=stored.admin).status_code == 200


def test_a_stranger_may_not(server: Server) -> None:
    assert server.client.get(URL).status_code == 401


@pytest.mark.parametrize("digest", ["a" * 64, "A" * 64, "a" * 63, "..%2fstates%2f0-aa"])
def test_what_is_not_there_is_refused(stored: Server, digest: str) -> None:
    assert stored.client.get(f"/v1/sets/{digest}").status_code in (404, 422)


def test_the_task_knows_that_its_download_began(stored: Server) -> None:
    device = device_of(
        dict(stored.client.headers) | {"Authorization": stored.client.headers["authorization"]}
    )
    with stored.services.database.write() as session:
        session.add(_round(0))
        session.flush()
        session.add(
            Assignment(
                id=credentials.new_id(),
                round=0,
                device=device,
                state="assigned",
                base=0,
                assigned=0.0,
                expires=0.0,
            )
        )
    _get(stored, If_None_Match=TAG)
    assert _downloaded(stored) is None
    first = stored.clock.now
    _get(stored)
    stored.clock.pass_time(5)
    _get(stored)
    assert _downloaded(stored) == first


def _downloaded(server: Server) -> float | None:
    with server.services.database.read() as session:
        return session.query(Assignment).one().downloaded
