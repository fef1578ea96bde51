"""Rate limits, long bodies, slow bodies."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile.bundle import Bundle
from pfl_server.counting.rate_limits import OpenRequests, RequestLimits, TokenBuckets, network
from pfl_server.federation.config import FederationConfig
from pfl_server.services import Services
from pfl_server.settings import LimitsConfig, ServerSettings
from pfl_server.web import connection
from tests.server.conftest import ADMIN_TOKEN, GENEROUS, Server, serving


class TestTokenBuckets:
    def test_a_burst_passes_and_the_next_one_waits(self) -> None:
        buckets = TokenBuckets(rate=2.0, burst=3, tracked=10)
        assert [buckets.take("a", 0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]

    def test_tokens_come_back_with_time(self) -> None:
        buckets = TokenBuckets(rate=2.0, burst=1, tracked=10)
        assert buckets.take("a", 0.0) == 0.0
        assert buckets.take("a", 0.25) == 0.25
        assert buckets.take("a", 0.5) == 0.0

    def test_keys_do_not_share(self) -> None:
        buckets = TokenBuckets(rate=1.0, burst=1, tracked=10)
        assert [buckets.take(k, 0.0) for k in ("a", "b", "a")] == [0.0, 0.0, 1.0]

    def test_memory_is_bounded(self) -> None:
        buckets = TokenBuckets(rate=1.0, burst=1, tracked=16)
        for key in range(1000):
            buckets.take(key, 0.0)
        assert len(buckets._buckets) == 16

    @given(st.lists(st.floats(0, 3), max_size=60), st.floats(0.1, 10), st.integers(1, 8))
    def test_no_more_pass_than_burst_and_rate_allow(
        self, steps: list[float], rate: float, burst: int
    ) -> None:
        buckets, now, passed = TokenBuckets(rate, burst, 10), 0.0, 0
        for step in steps:
            now += step
            passed += buckets.take("a", now) == 0.0
        assert passed <= burst + now * rate + 1e-6


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:0db8:0001:0002"),
        ("2001:db8:1:2::1%eth0", "2001:0db8:0001:0002"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        (None, ""),
        ("not:an:address", "not:an:address"),
    ],
)
def test_an_ipv6_network_is_limited_as_one(address: str | None, expected: str) -> None:
    assert network(address) == expected


class TestOpenRequests:
    @given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=80))
    def test_no_more_are_open_than_allowed_and_all_are_forgotten(self, steps: list[tuple[str, bool]]) -> None:
        requests, there = OpenRequests(4), {"a": 0, "b": 0, "c": 0}
        for key, begins in steps:
            if begins:
                expected = "own" if there[key] >= 2 else "all" if sum(there.values()) >= 4 else "begun"
                assert requests.begin(key, 2) == expected
                there[key] += expected == "begun"
            elif there[key]:
                requests.end(key)
                there[key] -= 1
        for key, count in there.items():
            for _ in range(count):
                requests.end(key)
        assert not requests._open
        assert requests._all == 0


class TestLimits:
    CONFIG = LimitsConfig(
        device_rate=1,
        device_burst=2,
        address_rate=1,
        address_burst=3,
        enrol_rate=1,
        enrol_burst=2,
        tracked=100,
    )

    def limits(self) -> RequestLimits:
        return RequestLimits(self.CONFIG, clock=lambda: 0.0)

    def test_a_valid_credential_counts_for_its_device(self) -> None:
        limits = self.limits()
        limits.seen_valid("Bearer one")
        for _ in range(2):
            assert limits.wait(b"Bearer one", "192.0.2.1") == 0.0
        assert limits.wait(b"Bearer one", "192.0.2.1") > 0
        assert limits.wait(None, "192.0.2.1") == 0.0

    def test_guessed_credentials_count_for_the_address(self) -> None:
        limits = self.limits()
        waits = [limits.wait(f"Bearer {n}".encode(), "192.0.2.1") for n in range(4)]
        assert waits[:3] == [0.0, 0.0, 0.0]
        assert waits[3] > 0

    def test_a_guess_does_not_use_up_a_devices_allowance(self) -> None:
        limits = self.limits()
        limits.seen_valid("Bearer pfl_device_a_good")
        for _ in range(10):
            limits.wait(b"Bearer pfl_device_a_guess", "192.0.2.1")
        assert limits.wait(b"Bearer pfl_device_a_good", "192.0.2.1") == 0.0

    def test_the_scheme_may_be_written_in_small_letters(self) -> None:
        limits = self.limits()
        limits.seen_valid("Bearer one")
        limits.wait(b"bearer one", "192.0.2.1")
        assert len(limits._devices._buckets) == 1

    def test_a_revoked_credential_counts_for_the_address_again(self) -> None:
        limits = self.limits()
        limits.seen_valid("Bearer one")
        limits.seen_invalid("Bearer one")
        limits.wait(b"Bearer one", "192.0.2.1")
        assert len(limits._devices._buckets) == 0

    def test_enrolling_has_a_limit_of_its_own(self) -> None:
        limits = self.limits()
        waits = [limits.wait(None, "192.0.2.1", enrolling=True) for _ in range(3)]
        assert waits[:2] == [0.0, 0.0]
        assert waits[2] > 0


class TestRates:
    @pytest.fixture
    def settings(self, settings: ServerSettings) -> ServerSettings:
        return settings.model_copy(update={"limits": LimitsConfig(address_rate=0.01, address_burst=3)})

    def test_too_many_requests_are_told_when_to_come_again(self, server: Server) -> None:
        answers = [server.client.get("/v1/federation") for _ in range(4)]
        assert [a.status_code for a in answers] == [200, 200, 200, 429]
        assert answers[-1].headers["content-type"] == "application/problem+json"
        assert answers[-1].json()["code"] == "rate-limited"
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 101

    def test_health_is_always_answered(self, server: Server) -> None:
        assert {server.client.get("/healthz").status_code for _ in range(10)} == {200}


class TestBodies:
    @pytest.fixture
    def settings(self, settings: ServerSettings) -> ServerSettings:
        limits = GENEROUS.model_copy(update={"json_bytes": 2048, "grace_s": 0.4, "min_rate": 1000.0})
        return settings.model_copy(update={"limits": limits})

    def test_a_long_body_is_refused_by_its_length(self, server: Server) -> None:
        answer = server.client.post("/v1/devices", content=b"x" * 2049)
        assert (answer.status_code, answer.json()["code"]) == (413, "body-too-large")

    def test_a_long_body_without_a_length_is_refused_while_it_comes(self, server: Server) -> None:
        def parts() -> Iterator[bytes]:
            for _ in range(100):
                yield b"x" * 100

        answer = server.client.post(
            "/v1/devices", content=parts(), headers={"content-type": "application/json"}
        )
        assert (answer.status_code, answer.json()["code"]) == (413, "body-too-large")


@pytest.fixture
def live_url(
    settings: ServerSettings, federated_bundle: Bundle, federation_config: FederationConfig
) -> Iterator[str]:
    limits = GENEROUS.model_copy(update={"json_bytes": 2048, "grace_s": 0.4, "min_rate": 1000.0})
    settings = settings.model_copy(update={"limits": limits})
    services = Services.open(settings, federated_bundle, federation_config, admin_token=ADMIN_TOKEN)
    with serving(services, coordinate=False) as url:
        yield url


class TestConnections:
    """With limits of a second, and few connections."""

    @pytest.fixture
    def url(
        self,
        settings: ServerSettings,
        federated_bundle: Bundle,
        federation_config: FederationConfig,
        monkeypatch: pytest.MonkeyPatch,
    ) -> Iterator[str]:
        monkeypatch.setattr(connection, "LOOK_S", 0.1)
        limits = GENEROUS.model_copy(update={"silence_s": 0.5, "address_connections": 4, "address_open": 3})
        settings = settings.model_copy(update={"limits": limits})
        services = Services.open(settings, federated_bundle, federation_config, admin_token=ADMIN_TOKEN)
        services.blobs.put("sets/" + "a" * 64, b"x" * (16 << 20))
        with serving(services, coordinate=False) as url:
            yield url

    def _connect(self, url: str) -> socket.socket:
        found = socket.socket()
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        found.settimeout(10)
        host, port = url.removeprefix("http://").split(":")
        found.connect((host, int(port)))
        return found

    def _is_over(self, sock: socket.socket) -> bool:
        """Whether the server ends the connection; what it sends is dropped."""
        try:
            while sock.recv(65536):
                pass
        except TimeoutError:
            return False
        except ConnectionError:
            pass
        return True

    def test_who_does_not_read_the_answer_is_dropped(self, url: str) -> None:
        request = b"GET /v1/sets/%s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n"
        with self._connect(url) as sock:
            sock.sendall(request % (b"a" * 64, ADMIN_TOKEN.encode()))
            time.sleep(1.5)
            got = 0
            try:
                while piece := sock.recv(65536):
                    got += len(piece)
            except ConnectionError:
                pass
            assert got < 16 << 20

    def test_who_reads_slowly_but_steadily_gets_it_all(self, url: str) -> None:
        request = (
            b"GET /v1/sets/%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer %s\r\n\r\n"
        )
        with self._connect(url) as sock:
            sock.sendall(request % (b"a" * 64, ADMIN_TOKEN.encode()))
            got, began = 0, time.monotonic()
            while piece := sock.recv(65536):
                got += len(piece)
                if time.monotonic() - began < 1.5:
                    time.sleep(0.1)
            assert got > 16 << 20

    def test_a_body_that_goes_on_after_its_answer_is_not_waited_for(self, url: str) -> None:
        with self._connect(url) as sock:
            sock.sendall(b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\nx")
            assert sock.recv(65536).startswith(b"HTTP/1.1 405")
            began = time.monotonic()
            assert self._is_over(sock)
            assert time.monotonic() - began < 5

    def test_the_connection_that_waits_longest_gives_way(self, url: str) -> None:
        with contextlib.ExitStack() as stack:
            socks = []
            for _ in range(5):
                socks.append(stack.enter_context(self._connect(url)))
                time.sleep(0.05)
            assert self._is_over(socks[0])
            socks[-1].sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert socks[-1].recv(65536).startswith(b"HTTP/1.1 200")

    def test_where_all_connections_are_busy_the_next_is_refused_typed(self, url: str) -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                sock = stack.enter_context(self._connect(url))
                sock.sendall(b"POST /v1/devices HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
            time.sleep(0.2)
            answer = stack.enter_context(self._connect(url)).recv(65536)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b'"code": "unavailable"' in answer
            assert b"retry-after: 1" in answer

    def test_more_requests_than_one_address_may_have_open_are_refused_typed(self, url: str) -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                sock = stack.enter_context(self._connect(url))
                sock.sendall(b"POST /v1/devices HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
            time.sleep(0.2)
            sock = stack.enter_context(self._connect(url))
            sock.sendall(b"GET /v1/federation HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = sock.recv(65536)
            assert answer.startswith(b"HTTP/1.1 429 ")
            assert b'"code": "rate-limited"' in answer

    def test_a_body_that_came_fast_may_not_be_silent_for_long(self, url: str) -> None:
        with self._connect(url) as sock:
            sock.sendall(
                b"POST /v1/devices HTTP/1.1\r\nHost: x\r\nContent-Length: 60001\r\n\r\n" + b"x" * 60000
            )
            began = time.monotonic()
            assert sock.recv(65536).startswith(b"HTTP/1.1 408")
            assert time.monotonic() - began < 5

    @pytest.mark.parametrize("many", [connection.HEADERS + 1, 3000])
    def test_many_small_headers_are_refused(self, url: str, many: int) -> None:
        with self._connect(url) as sock:
            sock.sendall(b"GET /healthz HTTP/1.1\r\n" + b"a:b\r\n" * many + b"\r\n")
            assert sock.recv(65536).startswith(b"HTTP/1.1 431 ")

    def test_a_client_may_send_some_requests_ahead_but_not_any_number(self, url: str) -> None:
        one = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        with self._connect(url) as sock:
            sock.sendall(one * connection.PIPELINED)
            time.sleep(0.5)
            assert sock.recv(65536).count(b"HTTP/1.1 200") == connection.PIPELINED
        with self._connect(url) as sock:
            sock.sendall(one * 1000)
            assert self._is_over(sock)


class TestOverTheWire:
    def _connect(self, url: str) -> socket.socket:
        host, port = url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=10)

    def _answer(self, connection: socket.socket) -> bytes:
        answer = b""
        while part := connection.recv(65536):
            answer += part
            if b"}" in answer:
                break
        return answer

    def test_a_refused_length_is_answered_before_the_body_comes(self, live_url: str) -> None:
        with self._connect(live_url) as connection:
            connection.sendall(b"POST /v1/devices HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
            begin = time.monotonic()
            answer = self._answer(connection)
            assert answer.startswith(b"HTTP/1.1 413")
            assert b"connection: close" in answer
            assert time.monotonic() - begin < 1.5

    def test_who_sends_a_long_body_all_the_same_still_reads_the_answer(self, live_url: str) -> None:
        with self._connect(live_url) as connection:
            size = 3 << 20
            connection.sendall(b"POST /v1/devices HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
            connection.sendall(b"x" * size)
            assert self._answer(connection).startswith(b"HTTP/1.1 413")

    def test_a_body_that_stops_coming_is_refused(self, live_url: str) -> None:
        with self._connect(live_url) as connection:
            begin = time.monotonic()
            connection.sendall(
                b"POST /v1/devices HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b'Content-Length: 1000\r\n\r\n{"bundle'
            )
            answer = self._answer(connection)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"body-too-slow" in answer
        assert 0.3 < time.monotonic() - begin < 5

    def test_a_body_that_trickles_is_refused(self, live_url: str) -> None:
        with self._connect(live_url) as connection:
            connection.sendall(b"POST /v1/devices HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\n\r\n")
            connection.settimeout(0.05)
            begin, answer = time.monotonic(), b""
            while not answer and time.monotonic() - begin < 8:
                connection.sendall(b"x")
                try:
                    answer = connection.recv(65536)
                except TimeoutError:
                    continue
        assert answer.startswith(b"HTTP/1.1 408")

    def test_a_slow_body_that_is_quick_enough_passes(self, live_url: str) -> None:
        body = b'{"x": "' + b"y" * 1500 + b'"}'
        with self._connect(live_url) as connection:
            connection.sendall(b"POST /v1/devices HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
            connection.sendall(b"Content-Length: %d\r\n\r\n" % len(body))
            for first in range(0, len(body), 300):
                connection.sendall(body[first : first + 300])
                time.sleep(0.12)
            assert self._answer(connection).startswith(b"HTTP/1.1 422")

    def test_the_server_goes_on_after_a_broken_connection(self, live_url: str) -> None:
        for _ in range(5):
            with self._connect(live_url) as connection:
                connection.sendall(b"POST /v1/devices HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        with self._connect(live_url) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert self._answer(connection).startswith(b"HTTP/1.1 200")
