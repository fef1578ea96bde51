"""Why users failed, in one vocabulary."""

from __future__ import annotations

from pfl_mobile.data.failures import counted, diverged, kind, kinds, named, reason, unusable
from pfl_mobile.errors import DataError

REASONS = ["DataError: no x", "NonFiniteError: NaN: in a loss", "DataError: no y"]


def test_errors_are_told_by_kind_and_reason() -> None:
    why = reason(DataError("no\n  'x'", mend="give it"))
    assert why == "DataError: no 'x'"
    assert kind(why) == "DataError"
    assert kinds(REASONS) == {"DataError": 2, "NonFiniteError": 1}
    assert counted(REASONS) == "2 DataError, 1 NonFiniteError"
    assert diverged(None) is None
    assert kind(diverged("a loss is NaN") or "") == "NonFiniteError"


def test_a_long_reason_is_cut() -> None:
    assert len(reason(DataError("x" * 10_000, mend=""))) < 420


def test_what_a_users_code_raised_is_told_with_its_line() -> None:
    try:
        raise KeyError("x")
    except KeyError as error:
        found = unusable(error, "the rows cannot be read")
    assert found.message.startswith("the rows cannot be read: KeyError: 'x' (test_failures.py, line ")


def test_some_users_are_named_and_the_others_counted() -> None:
    failed = {f"u{i}": "DataError: no x" for i in range(4)}
    assert named(failed, most=2) == "u0 (DataError), u1 (DataError) and 2 more"
    assert named(failed) == "u0 (DataError), u1 (DataError), u2 (DataError), u3 (DataError)"
