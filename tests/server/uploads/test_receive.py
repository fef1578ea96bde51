"""Uploads: what is accepted, gone on with, repeated and refused."""

from __future__ import annotations

import socket
import threading
import time
from urllib.parse import urlsplit

import httpx2 as httpx
import numpy as np
import pytest

from pfl_mobile.local.state import ModelId
from pfl_server.uploads import path
from pfl_server.uploads.partial_file import BUFFER, open_part
from tests.server.testbed import code, federation_config, layout, progress, small, update_of

BIG = (("a", "shared", (BUFFER // 2,)), ("b", "shared", (3,)))


@pytest.fixture
def f(tmp_path):
    with small(tmp_path, federation_config(), devices=3) as found:
        yield found


def test_an_upload_that_is_all_there_is_finished_by_an_empty_request(f):
    task = f.task(f.devices[0])
    data = update_of(task)
    f.put(f.devices[0], task, data[:-1], Upload_Length=str(len(data)))
    answer = f.put(f.devices[0], task, data[-1:], Upload_Offset=str(len(data) - 1))
    assert answer.json()["status"] == "accepted"


def test_an_upload_begins_anew_from_offset_0_or_under_another_key(f):
    task = f.task(f.devices[0])
    data = update_of(task)
    f.put(f.devices[0], task, data[:100], Upload_Length=str(len(data)))
    f.put(f.devices[0], task, data[:40], Upload_Length=str(len(data)))
    assert progress(f, task)["Upload-Offset"] == "40"
    f.put(f.devices[0], task, data[:60], Upload_Length=str(len(data)), Idempotency_Key="new")
    assert progress(f, task, **{"Idempotency-Key": "key"})["Upload-Offset"] == "0"
    assert f.put(f.devices[0], task, data).json()["status"] == "accepted"


def test_only_one_request_writes_an_upload(f):
    task = f.task(f.devices[0])
    data = update_of(task)
    with open_part(f.services.blobs.scratch, task["id"], "key", len(data)):
        answer = f.put(f.devices[0], task, data)
    assert code(answer) == "unavailable"
    assert answer.headers["Retry-After"]
    assert f.put(f.devices[0], task, data).status_code == 200


def test_a_body_that_is_too_long_is_refused_before_it_is_read(f):
    task = f.task(f.devices[0])
    data = update_of(task) + b"\0" * f.services.runtime.max_update_bytes
    assert code(f.put(f.devices[0], task, data)) == "body-too-large"


def test_requests_without_what_is_needed_are_refused(f):
    task = f.task(f.devices[0])
    data = update_of(task)
    put = f.client.put
    assert code(put(task["update_url"], content=data, headers=f.devices[0])) == "idempotency-key-required"
    chunked = put(task["update_url"], content=iter([data]), headers={**f.devices[0], "Idempotency-Key": "k"})
    assert code(chunked) == "length-required"
    assert code(f.put(f.devices[0], task, data, Upload_Length="3")) == "bad-request"
    assert code(f.put(f.devices[0], task, data, Upload_Offset="-1")) == "invalid-request"
    assert code(f.put(f.devices[0], task, data, Idempotency_Key="a b")) == "invalid-request"
    assert code(put(task["update_url"], content=data, headers={"Idempotency-Key": "k"})) == "unauthorized"
    assert f.assignment(task).state == "assigned"
    chunked = put(
        task["update_url"],
        content=iter([data[:50], data[50:]]),
        headers={**f.devices[0], "Idempotency-Key": "k", "Upload-Length": str(len(data))},
    )
    assert chunked.json()["status"] == "accepted"


def test_a_large_update_is_streamed(tmp_path):
    with small(tmp_path, federation_config(), devices=1, tensors=BIG) as f:
        task = f.task(f.devices[0])
        values = np.random.default_rng(0).standard_normal(layout(task).size).astype(np.float32)
        data = update_of(task, values)
        assert len(data) > 2 * BUFFER
        assert f.put(f.devices[0], task, data).status_code == 200
        assert f.assignment(task).norm == pytest.approx(
            float(np.linalg.norm(values.astype(np.float64))), rel=2e-6
        )


@pytest.mark.parametrize("slow", [False, True], ids=["read before", "read after"])
def test_what_arrived_before_the_connection_broke_is_kept(live_server, federated_bundle, monkeypatch, slow):
    """A real connection that ends in the middle of a body, before the server reads it or after."""
    if slow:
        begin = path._begin

        def later(upload):
            ended.wait(60)
            time.sleep(0.1)  # the event loop must see that the connection ended
            return begin(upload)

        monkeypatch.setattr(path, "_begin", later)
    ended = threading.Event()
    manifest = federated_bundle.manifest
    model = ModelId.of(manifest.name, manifest.version, manifest.tensors, manifest.frozen_sha256)
    bundle = {"name": model.name, "version": model.version, "fingerprint": model.fingerprint}
    with httpx.Client(base_url=live_server, timeout=60) as client:  # a busy machine is slow
        made = client.post("/v1/devices", json={"bundle": bundle}).json()
        device = {"Authorization": f"Bearer {made['credential']}"}
        for _ in range(100):
            found = client.post("/v1/check-in", json={"bundle": bundle, "examples": 9}, headers=device).json()
            if found["status"] == "task":
                break
            time.sleep(0.05)
        task = found["task"]
        data = update_of(task)
        where = urlsplit(live_server)
        with socket.create_connection((where.hostname, where.port)) as raw:
            head = f"PUT {task['update_url']} HTTP/1.1\r\nHost: x\r\nAuthorization: {device['Authorization']}\r\n"
            head += f"Idempotency-Key: k\r\nContent-Length: {len(data)}\r\n\r\n"
            raw.sendall(head.encode() + data[: len(data) // 2])
            if not slow:
                time.sleep(0.2)
        ended.set()
        for _ in range(600):
            there = int(client.head(task["update_url"], headers=device).headers["Upload-Offset"])
            if there:
                break
            time.sleep(0.05)
        assert there == len(data) // 2
        answer = client.put(
            task["update_url"],
            content=data[there:],
            headers={**device, "Idempotency-Key": "k", "Upload-Offset": str(there)},
        )
        assert answer.json()["status"] == "accepted"
