"""Whatever is uploaded, the server answers with one of its problems and goes on."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfl_server.problems import PROBLEMS
from tests.server.testbed import federation_config, small, update_of


@pytest.fixture(scope="module")
def f(tmp_path_factory):
    config = federation_config(rounds={"cohort": 10**6, "over_selection": 10.0, "deadline_s": 1e9})
    with small(tmp_path_factory.mktemp("fuzz"), config) as found:
        yield found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 600), st.integers(0, 2), st.binary(max_size=16)), max_size=5),
    st.sampled_from([{}, {"Upload-Length": "700"}, {"Upload-Offset": "3"}, {"Upload-Offset": "9" * 30}]),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=70),
)
def test_any_upload_is_answered(f, edits, headers, key):
    device = f.enrol(1)[0]
    task = f.task(device)
    data = bytearray(update_of(task))
    for at, kind, new in edits:
        at = min(at, len(data))
        if kind == 0:
            data[at : at + len(new)] = new
        elif kind == 1:
            data[at:at] = new
        else:
            del data[at : at + len(new)]
    answer = f.client.put(
        task["update_url"], content=bytes(data), headers={**device, "Idempotency-Key": key, **headers}
    )
    if answer.status_code not in (200, 202):
        assert answer.status_code < 500
        assert answer.json()["code"] in PROBLEMS
    else:
        assert f.assignment(task).state == ("accepted" if answer.status_code == 200 else "assigned")
