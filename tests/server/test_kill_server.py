"""A server that is killed while devices upload: what it said it accepted is in the model, once."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from contextlib import suppress

import httpx2 as httpx
import numpy as np
import pytest
from sqlalchemy import select

from pfl_mobile.bundle import Bundle
from pfl_mobile.local.state import ModelId
from pfl_server.storage.models import Assignment, Round
from tests.server.basics import free_port
from tests.server.testbed import layout, small, update_of, write_small_bundle

pytestmark = pytest.mark.slow

DEVICES, KILLS = 6, 3


class Device(threading.Thread):
    """Takes part until it is stopped, and notes what was accepted."""

    def __init__(self, url, bundle, stop):
        super().__init__()
        self.url, self.bundle, self.stop = url, bundle, stop
        self.sent: dict[str, np.ndarray] = {}
        self.accepted: set[str] = set()
        self.rng = np.random.default_rng()

    def run(self):
        headers: dict[str, str] = {}
        while not self.stop.is_set():
            with (
                suppress(httpx.TransportError),
                httpx.Client(base_url=self.url, timeout=10, verify=False) as client,
            ):
                if not headers:
                    made = client.post("/v1/devices", json={"bundle": self.bundle})
                    headers = {"Authorization": f"Bearer {made.json()['credential']}"}
                self.take_part(client, headers)
            time.sleep(0.1)

    def take_part(self, client, headers):
        body = {"bundle": self.bundle, "examples": 10}
        found = client.post("/v1/check-in", json=body, headers=headers).json()
        if found.get("status") != "task":
            return
        task = found["task"]
        values = self.sent.get(task["id"])
        if values is None:
            values = self.sent[task["id"]] = self.rng.standard_normal(layout(task).size).astype(np.float32)
        answer = client.put(
            task["update_url"],
            content=update_of(task, values),
            headers={**headers, "Idempotency-Key": task["id"]},
        )
        if answer.status_code == 200:
            self.accepted.add(task["id"])


def start(folder, port):
    process = subprocess.Popen([sys.executable, "-m", "tests.server.live_small", str(folder), str(port)])
    give_up = time.monotonic() + 60
    while True:
        with suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{port}/readyz", verify=False).status_code == 200:
                return process
        assert process.poll() is None
        assert time.monotonic() < give_up
        time.sleep(0.05)


def test_what_was_accepted_is_merged_once_whatever_is_killed_when(tmp_path):
    write_small_bundle(tmp_path / "bundle")
    with Bundle.open(tmp_path / "bundle") as opened:
        model = ModelId.of(opened.manifest.name, opened.manifest.version, opened.manifest.tensors)
        initial = opened.values()
    bundle = {"name": model.name, "version": model.version, "fingerprint": model.fingerprint}
    port, stop = free_port(), threading.Event()
    devices = [Device(f"http://127.0.0.1:{port}", bundle, stop) for _ in range(DEVICES)]
    process = start(tmp_path, port)
    for device in devices:
        device.start()
    try:
        for _ in range(KILLS):
            time.sleep(random.uniform(0.7, 2.0))
            process.kill()
            process.wait()
            process = start(tmp_path, port)
        time.sleep(2)
    finally:
        stop.set()
        for device in devices:
            device.join()
        process.kill()
        process.wait()
    sent = {task: values for device in devices for task, values in device.sent.items()}
    accepted = {task for device in devices for task in device.accepted}
    assert len(accepted) > 3 * KILLS
    with small(tmp_path) as f:
        f.clock.now = time.time() + 3600
        for _ in range(3):
            f.step()
        with f.services.database.read() as session:
            states = {a.id: a for a in session.scalars(select(Assignment))}
            merged = session.scalars(
                select(Round).where(Round.state == "merged").order_by(Round.number)
            ).all()
        assert {states[task].state for task in accepted} <= {"merged", "discarded"}
        for task in accepted:  # only a round that had too few updates at its deadline lets go of them
            if states[task].state == "discarded":
                assert f.round(states[task].round).state == "abandoned"
        total = np.zeros(10)
        for at in merged:
            mine = [a for a in states.values() if a.round == at.number and a.state == "merged"]
            assert at.summary["updates"] == len(mine)
            total += np.mean([sent[a.id] for a in mine], axis=0)
        after = f.model().values
        moved = np.concatenate([(after[n] - initial[n]).reshape(-1) for n in ("a", "b")])
        np.testing.assert_allclose(moved, total, rtol=1e-3, atol=1e-4)
