"""Connections are bounded: how many there are, who gives way, and what counts as stuck (`test_flood.py`: real ones)."""

from __future__ import annotations

import asyncio

import pytest

from pfl_server.settings import LimitsConfig
from pfl_server.web import connection
from pfl_server.web.connection import Connections, _Counted, _Sending


class Transport:
    def __init__(self):
        self.aborted, self.closing, self.data = False, False, b""

    def abort(self):
        self.aborted = True

    def is_closing(self):
        return self.closing

    def write(self, data):
        self.data += data


class Loop:
    def __init__(self):
        self.now, self.later = 0.0, []

    def time(self):
        return self.now

    def call_later(self, seconds, function, *arguments):
        self.later.append((function, arguments))
        return asyncio.TimerHandle

    def look(self):
        function, arguments = self.later.pop()
        function(*arguments)


LOOP = Loop()


class Connection:
    loop = LOOP

    def __init__(self, waits_since, stuck):
        self.waits_since, self.stuck, self.transport = waits_since, stuck, Transport()

    def is_stuck(self, now):
        return self.stuck


def one(waits_since=None, stuck=False):
    return Connection(waits_since, stuck)


@pytest.fixture
def made():
    LOOP.later.clear()

    def make(trusted=(), **limits):
        return Connections(LimitsConfig(**limits), trusted)

    return make


def test_the_one_that_has_waited_longest_gives_way(made):
    found = made(connections=3)
    busy, old, new = one(), one(waits_since=1.0), one(waits_since=2.0)
    assert all(found.enter(c, f"10.0.0.{n}") for n, c in enumerate((busy, new, old)))
    assert found.enter(one(), "10.0.0.9")
    assert [c.transport.aborted for c in (busy, old, new)] == [False, True, False]


def test_where_all_are_at_work_a_new_one_is_refused(made):
    found = made(connections=2)
    first, second = one(), one()
    assert found.enter(first, "a")
    assert found.enter(second, "b")
    assert not found.enter(one(), "c")
    found.leave(first)
    found.leave(first)
    assert found.enter(one(), "c")
    assert not found.enter(one(), "d")


def test_one_address_has_its_own_bound_and_takes_from_no_other(made):
    found = made(connections=100, address_connections=2)
    other = one(waits_since=0.0)
    assert found.enter(other, "10.0.0.2")
    assert found.enter(one(), "10.0.0.1")
    assert found.enter(one(), "10.0.0.1")
    assert not found.enter(one(), "10.0.0.1")
    assert not other.transport.aborted
    assert found.enter(one(), "10.0.0.3")


def test_a_network_of_ipv6_is_one_address(made):
    found = made(address_connections=1)
    assert found.enter(one(), "2001:db8::1")
    assert not found.enter(one(), "2001:db8::2")
    assert found.enter(one(), "2001:db8:0:1::1")


def test_a_trusted_proxy_brings_the_connections_of_many(made):
    found = made(trusted=("10.0.0.1",), address_connections=1)
    assert all(found.enter(one(), "10.0.0.1") for _ in range(5))


def test_few_files_mean_few_connections(made, monkeypatch):
    monkeypatch.setattr(connection.resource, "getrlimit", lambda which: (4, 4))
    found = made(connections=100)
    assert [found.enter(one(), str(n)) for n in range(3)] == [True, True, False]


def test_stuck_connections_end_and_looking_ends_with_the_last(made):
    found = made()
    good, bad = one(), one(stuck=True)
    assert found.enter(good, "a")
    assert found.enter(bad, "b")
    assert len(LOOP.later) == 1
    LOOP.look()
    assert (good.transport.aborted, bad.transport.aborted) == (False, True)
    found.leave(good)
    found.leave(bad)
    LOOP.look()
    assert LOOP.later == []


LIMITS = LimitsConfig(silence_s=5.0, grace_s=10.0, min_rate=100.0)


def test_an_answer_that_nobody_reads_is_stuck_after_the_silence():
    sending = _Sending(100.0, 0)
    assert not sending.is_stuck(105.0, 0, LIMITS)
    assert sending.is_stuck(105.1, 0, LIMITS)


def test_an_answer_that_is_read_too_slowly_is_stuck_though_it_moves():
    sending = _Sending(0.0, 50)
    for second in range(1, 11):
        assert not sending.is_stuck(float(second), 50 + second, LIMITS)
    assert sending.is_stuck(11.0, 50 + 11, LIMITS), "10 s of grace, and 11 bytes are worth no second"


def test_an_answer_that_is_read_steadily_is_not():
    sending = _Sending(0.0, 0)
    assert not any(sending.is_stuck(float(s), 120 * s, LIMITS) for s in range(1, 100))


def test_bytes_are_counted_and_dropped_once_the_connection_closes():
    transport = Transport()
    counted = _Counted(transport)
    counted.write(b"abc")
    transport.closing = True
    counted.write(b"de")
    assert (counted.written, transport.data) == (3, b"abc")
    assert counted.is_closing()
