"""The file of an upload as it grows, and what is computed of it."""

from __future__ import annotations

import struct
import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfl_mobile.protocol.update_file import canonical
from pfl_server.uploads import partial_file as part
from pfl_server.uploads.partial_file import BUFFER, Busy, Scan, open_part, remove_parts
from tests.server.testbed import update_of

FORM = canonical({"a": (13,), "b": (2, 2)})


def scanned(data, cuts=()):
    found = Scan(FORM, len(data))
    edges = sorted(min(cut, len(data)) for cut in cuts)
    for first, last in zip([0, *edges], [*edges, len(data)], strict=True):
        found.add(memoryview(data)[first:last])
    return found


def update_of_form(values):
    task = {"id": "ab" * 16, "round": 1, "version": 0, "reports": []}
    return update_of(task | {"layout": [{"name": n, "shape": s} for n, s in FORM.shapes.items()]}, values)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 500), max_size=8), st.integers(0, 2**32 - 1), st.floats(0, 1e30))
def test_a_scan_does_not_depend_on_how_the_bytes_are_cut(cuts, seed, scale):
    values = (np.random.default_rng(seed).standard_normal(FORM.size) * scale).astype(np.float32)
    data = update_of_form(values)
    found = scanned(data, cuts)
    assert found.head is not None
    assert found.head.task == "ab" * 16
    assert found.norm == pytest.approx(float(np.linalg.norm(values.astype(np.float64))), rel=2e-6)
    assert found.digest == f"{zlib.crc32(data):08x}"


@given(st.integers(0, 2000), st.floats(-40, 38), st.integers(0, 2**32 - 1))
def test_sums_of_squares_are_right_to_a_millionth(size, exponent, seed):
    values = (
        (np.random.default_rng(seed).standard_normal(size) * 10**exponent)
        .clip(-3e38, 3e38)
        .astype(np.float32)
    )
    exact = float(np.square(values.astype(np.float64)).sum())
    assert part.sum_of_squares(values) == pytest.approx(exact, rel=2e-6, abs=1e-37)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_scan_finds_what_is_not_finite(value):
    data = update_of_form(1.0)
    assert np.isnan(scanned(data[:-4] + struct.pack("<f", value)).norm)


BIG_FORM = canonical({"a": (BUFFER // 2,)})


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(0, 3 * BUFFER), max_size=6),
    st.lists(st.integers(0, 3 * BUFFER), max_size=2),
    st.booleans(),
)
def test_a_part_holds_what_was_written_however_it_came(tmp_path, monkeypatch, cuts, breaks, direct):
    """Pieces of any size, connections that break anywhere, with and without direct writes."""
    monkeypatch.setattr(part, "_DIRECT", part._DIRECT if direct else None)
    form = BIG_FORM
    task = {
        "id": "cd" * 16,
        "round": 1,
        "version": 0,
        "reports": [],
        "layout": [{"name": "a", "shape": form.shapes["a"]}],
    }
    values = np.random.default_rng(len(cuts)).standard_normal(form.size).astype(np.float32)
    data = update_of(task, values)
    remove_parts(tmp_path, task["id"])
    stops = [*sorted({b for b in breaks if b < len(data)}), len(data)]
    at = 0
    for stop in stops:
        with open_part(tmp_path, task["id"], "key", len(data)) as found:
            assert found.size == at
            scan = Scan(form, len(data))
            found.rescan(scan)
            edges = [at, *sorted(c for c in cuts if at < c < stop), stop]
            found.write([data[a:b] for a, b in pairwise(edges)], scan)
            at = stop
            assert found.size == at
            if at < len(data):
                found.flush()
                continue
            found.finish(scan)
            with found.whole() as path:
                assert path.read_bytes() == data
            assert (scan.seen, scan.digest) == (len(data), f"{zlib.crc32(data):08x}")
            assert scan.norm == pytest.approx(float(np.linalg.norm(values.astype(np.float64))), rel=2e-6)


@pytest.fixture
def scan():
    return Scan(FORM, len(update_of_form(1.0)))


def test_a_part_that_another_upload_took_away_is_not_used(tmp_path, scan):
    with open_part(tmp_path, "ab" * 16, "one", 100) as found:
        found.write([b"x" * 10], scan)
        with open_part(tmp_path, "ab" * 16, "two", 100), pytest.raises(Busy), found.whole():
            pass
        # A file of the same name is not the one that was looked at.
        with open_part(tmp_path, "ab" * 16, "one", 100), pytest.raises(Busy), found.whole():
            pass


def test_what_is_looked_at_is_what_is_stored(tmp_path, scan):
    with open_part(tmp_path, "ab" * 16, "one", 100) as found:
        found.write([b"honest"], scan)
        found.flush()
        with found.whole() as path:
            with open_part(tmp_path, "ab" * 16, "one", 100) as other:
                other.write([b"attack"], scan)
                other.flush()
            assert path.read_bytes() == b"honest"
        assert not path.exists()
