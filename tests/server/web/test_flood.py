"""Few clients that open much and finish nothing: the server's memory stays, and others are answered.

Bounded in time and count, against a server of its own on loopback. Rates are not limited here, so that what is measured
is what open requests and connections hold.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from pfl_server.settings import LimitsConfig
from tests.server.basics import free_port
from tests.server.testbed import update_of, write_small_bundle

#: Values of the update: 4 MB.
VALUES = 1 << 20
#: Connections of an attack.
MANY = 150
#: What an attack may cost the server, in bytes: far less than a MiB for each connection.
COST = 48 << 20
#: Seconds that an attack lasts.
LASTS_S = 2.0


@dataclass
class Target:
    """A server under attack, a device whose update was accepted, and one that has a task."""

    process: subprocess.Popen[str]
    port: int
    client: httpx2.Client
    sent: dict[str, Any]
    sender: dict[str, str]
    waiting: dict[str, Any]
    waiter: dict[str, str]

    def memory(self, kind: str = "VmRSS") -> int:
        """Bytes in memory, or at most since `forget`."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{kind}:"):
                return int(line.split()[1]) << 10
        raise AssertionError(kind)

    def forget(self) -> None:
        """Begin anew with the largest memory."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def connect(self, **options: int) -> socket.socket:
        sock = socket.socket()
        for name, value in options.items():
            sock.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        sock.settimeout(5)
        sock.connect(("127.0.0.1", self.port))
        return sock

    def put(self, task: dict[str, Any], who: dict[str, str], **headers: object) -> bytes:
        """The head of an upload."""
        named = {"Host": "x", "Idempotency-Key": "key", **who}
        named |= {name.replace("_", "-"): str(value) for name, value in headers.items()}
        return _head(f"PUT {task['update_url']}", named)


def _head(line: str, headers: dict[str, str]) -> bytes:
    named = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{line} HTTP/1.1\r\n{named}\r\n".encode()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder, port = tmp_path_factory.mktemp("flood"), free_port()
    write_small_bundle(folder / "bundle", tensors=(("a", "shared", (VALUES,)),))
    command = [sys.executable, "-m", "tests.server.live_small", str(folder), str(port), "600"]
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((folder / "log").open("w"))
        process = stack.enter_context(subprocess.Popen(command, stderr=log, text=True))
        stack.callback(process.kill)
        client = stack.enter_context(
            httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, verify=False)
        )
        give_up = time.monotonic() + 60
        while True:
            with contextlib.suppress(httpx2.TransportError):
                if client.get("/readyz").status_code == 200:
                    break
            assert process.poll() is None
            assert time.monotonic() < give_up
            time.sleep(0.1)
        bundle = client.get("/v1/federation").json()["bundle"]
        people = []
        for _ in range(2):
            credential = client.post("/v1/devices", json={"bundle": bundle}).json()["credential"]
            people.append({"Authorization": f"Bearer {credential}"})

        def task(who: dict[str, str]) -> dict[str, Any]:
            facts = {"bundle": bundle, "examples": 10, "facts": {}}
            return dict(client.post("/v1/check-in", json=facts, headers=who).json()["task"])

        sent, waiting = task(people[0]), task(people[1])
        data = update_of(sent)
        for _ in range(2):
            answer = client.put(
                sent["update_url"], content=data, headers={**people[0], "Idempotency-Key": "key"}
            )
            assert answer.json()["status"] == "accepted"
        yield Target(process, port, client, sent, people[0], waiting, people[1])


def resend(t: Target, n: int) -> bytes:
    """The accepted update again, as far as it is buffered at once."""
    return t.put(t.sent, t.sender, Content_Length=len(update_of(t.sent))) + b"x" * (1 << 20)


def resend_in_chunks(t: Target, n: int) -> bytes:
    head = t.put(t.sent, t.sender, Upload_Length=len(update_of(t.sent)), Transfer_Encoding="chunked")
    return head + b"%x\r\n" % (1 << 20) + b"x" * (1 << 20)


def resend_as_a_rest(t: Target, n: int) -> bytes:
    size = len(update_of(t.sent))
    return t.put(t.sent, t.sender, Content_Length=size - 9, Upload_Offset=9, Upload_Length=size) + b"x" * (
        1 << 20
    )


def first_time(t: Target, n: int) -> bytes:
    """The update of a task that waits for it, under many keys."""
    data = update_of(t.waiting)
    return t.put(t.waiting, t.waiter, Content_Length=len(data), Idempotency_Key=f"key{n}") + data[: 1 << 20]


def another_task(t: Target, n: int) -> bytes:
    task = {"update_url": f"/v1/tasks/{n:032x}/update"}
    return t.put(task, t.waiter, Content_Length=4 << 20) + b"x" * (1 << 20)


def bodies(t: Target, n: int) -> bytes:
    """Bodies that stop before their end, at every endpoint that takes one."""
    paths = (
        "/v1/check-in",
        "/v1/devices",
        "/v1/challenges",
        f"{t.waiting['update_url'].removesuffix('update')}evaluation",
        f"{t.waiting['update_url'].removesuffix('update')}decline",
        "/v1/admin/tokens",
        "/no/such",
    )
    headers = {"Host": "x", "Content-Type": "application/json", **(t.sender if n % 2 else {})}
    headers |= {"Content-Length": "65536"} if n % 3 else {"Transfer-Encoding": "chunked"}
    return _head(f"POST {paths[n % len(paths)]}", headers) + (
        b"{" + b" " * 60000 if n % 3 else b"1\r\n{\r\n" * 3000
    )


def half_heads(t: Target, n: int) -> bytes:
    return b"GET /v1/federation HTTP/1.1\r\n" + b"a:b\r\n" * 3000


def never_read(t: Target, n: int) -> bytes:
    """Downloads whose answer is not read."""
    return _head(f"GET {t.sent['sets']['global']['url']}", {"Host": "x", **t.sender})


def pipelined(t: Target, n: int) -> bytes:
    return _head("GET /v1/federation", {"Host": "x"}) * 5000


def upgrades(t: Target, n: int) -> bytes:
    return (
        _head("GET /v1/federation", {"Host": "x", "Connection": "Upgrade", "Upgrade": "websocket"})
        + b"\0" * 60000
    )


def nothing(t: Target, n: int) -> bytes:
    return b""


ATTACKS: list[Callable[[Target, int], bytes]] = [
    resend,
    resend_in_chunks,
    resend_as_a_rest,
    first_time,
    another_task,
    bodies,
    half_heads,
    never_read,
    pipelined,
    upgrades,
    nothing,
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.__name__)
def test_memory_stays_and_others_are_answered(target: Target, attack: Callable[[Target, int], bytes]) -> None:
    target.client.get("/v1/federation")
    target.forget()
    before = target.memory()
    with contextlib.ExitStack() as stack:
        for n in range(MANY):
            sock = stack.enter_context(target.connect(SO_RCVBUF=4096))
            sock.setblocking(False)
            data = memoryview(attack(target, n))
            with contextlib.suppress(BlockingIOError, ConnectionError):
                while data:
                    data = data[sock.send(data) :]
        asked, until = 0, time.monotonic() + LASTS_S
        while time.monotonic() < until:
            began = time.monotonic()
            assert target.client.get("/v1/federation").status_code == 200
            assert time.monotonic() - began < 5
            asked += 1
            time.sleep(0.05)
        assert asked
        cost = target.memory("VmHWM") - before
        print(f"{attack.__name__}: {cost / 2**20:.1f} MiB, {asked} answers meanwhile")
        assert cost < COST
    assert target.process.poll() is None


def test_a_second_request_for_a_task_is_refused_at_once_and_typed(target: Target) -> None:
    size = len(update_of(target.sent))
    for who, task in ((target.sender, target.sent), (target.waiter, target.waiting)):
        with target.connect() as first, target.connect() as second:
            first.sendall(target.put(task, who, Content_Length=size) + b"x")
            time.sleep(0.3)
            began = time.monotonic()
            second.sendall(target.put(task, who, Content_Length=size))
            answer = b""
            while b"}" not in answer:
                answer += second.recv(65536)
            assert time.monotonic() - began < 0.8 * LimitsConfig().silence_s
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "unavailable"
            assert b"retry-after: 2" in answer.lower()


def test_requests_of_one_device_beside_those_it_has_open_are_refused(target: Target) -> None:
    most = LimitsConfig().device_open
    with contextlib.ExitStack() as stack:
        for _ in range(most):
            sock = stack.enter_context(target.connect())
            headers = {"Host": "x", "Content-Length": "100", **target.sender}
            sock.sendall(_head("POST /v1/check-in", headers))
        time.sleep(0.3)
        answer = target.client.get("/v1/versions/latest", headers=target.sender)
        assert (answer.status_code, answer.json()["code"]) == (429, "rate-limited")
        assert answer.headers["Retry-After"] == "1"
        assert target.client.get("/v1/versions/latest", headers=target.waiter).status_code == 200
    time.sleep(0.3)
    assert target.client.get("/v1/versions/latest", headers=target.sender).status_code == 200
