"""How long a device waits before it tries again."""

from __future__ import annotations

import email.utils
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile.device.backoff import MOST_TOLD_S, Backoff, retry_after


class Largest(random.Random):
    """Draws no jitter."""

    def uniform(self, a, b):
        return b


def test_waits_double_up_to_the_longest():
    backoff = Backoff(first_s=0.5, most_s=3.0)
    pauses = [backoff.pause(failures, None, Largest()) for failures in (1, 2, 3, 4, 1000)]
    assert pauses == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_jitter_is_between_a_half_and_one():
    draw = random.Random(0)
    pauses = [Backoff(first_s=8.0).pause(1, None, draw) for _ in range(200)]
    assert 4.0 <= min(pauses) < 4.2
    assert 7.8 < max(pauses) <= 8.0


def test_a_server_can_ask_for_longer_waits_but_not_for_any():
    backoff = Backoff(first_s=2.0)
    assert backoff.pause(1, 30.0, Largest()) == 30.0
    assert backoff.pause(1, 0.1, Largest()) == 2.0, "never shorter than its own"
    assert backoff.pause(1, 1e9, Largest()) == MOST_TOLD_S


@given(st.integers(1, 200), st.none() | st.floats(0, 1e9), st.integers(0, 99))
def test_pauses_grow_with_jitter_and_are_bounded(failures, told, seed):
    backoff = Backoff(first_s=0.5, most_s=60.0)
    pause = backoff.pause(failures, told, random.Random(seed))
    own = min(60.0, 0.5 * 2.0 ** (failures - 1))
    assert pause >= own / 2
    assert pause <= max(own, min(told or 0.0, 24 * 3600.0))


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("0", 0.0), (None, None), ("", None), ("soon", None), ("-3", None), ("1.5", None)],
)
def test_retry_after_in_seconds(header, seconds):
    assert retry_after(header) == seconds


def test_retry_after_as_a_date():
    in_a_minute = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert retry_after(in_a_minute) == pytest.approx(60, abs=2)
    assert retry_after("Wed, 01 Jan 2020 00:00:00 GMT") == 0.0, "the past is now"
