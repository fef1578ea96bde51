"""A federation of one round after another, small enough to be told what to answer; it keeps everything it is sent."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from pfl_mobile.files.tensors import tensors_from_bytes, tensors_to_bytes
from pfl_mobile.plan.schema import Plan
from pfl_mobile.protocol.update_file import layout_of, parse_prefix
from tests.local.fake import Linear, plan, sgd

PRIVATE = {
    "mechanism": "gaussian",
    "clip_norm": 0.05,
    "noise_multiplier": 1.0,
    "statement": {
        "private": True,
        "epsilon": 7.0,
        "delta": 1e-6,
        "noise_multiplier": 1.0,
        "sampling": "none",
    },
    "epsilon_after": 8.0,
}
PLAN = plan(
    {"kind": "move", "group": ["role:shared"], "toward": "global", "rate": 1.0},
    sgd(lr=0.3, steps=12),
    upload=["role:shared"],
)


@dataclass
class Fake:
    """What the server is like; change it between requests."""

    bundle: dict
    rounds: int = 1
    plan: Plan = PLAN
    privacy: dict = field(default_factory=lambda: dict(PRIVATE))
    reports: tuple = ()
    extra_sets: dict = field(default_factory=dict)
    expires_in_s: float = 60.0
    attestation: tuple = ()
    values: dict = field(default_factory=lambda: {"head.weight": np.full((3, 4), 0.1, np.float32)})

    def __post_init__(self):
        self.lock = threading.RLock()
        self.round, self.tasks, self.devices = 0, {}, {}
        self.requests, self.refuse = [], {}
        self.blobs, self.downloaded = {}, {}

    # -- what a test looks at

    @property
    def accepted(self):
        return [t for t in self.tasks.values() if t["accepted"]]

    def update_of(self, task):
        layout = layout_of(self.plan, Linear.tensors)
        head, _ = parse_prefix(bytes(task["body"]), layout, len(task["body"]))
        return head, tensors_from_bytes(bytes(task["body"]))

    # -- requests

    def handle(self, method, path, headers, body):
        """Answer: status, headers, body. ``body`` is an iterator of the pieces that arrive."""
        with self.lock:
            self.requests.append((method, path))
            refused = self.refuse.pop((method, path.split("/")[2]), None)
        if refused is not None:
            b"".join(body)
            return refused
        if method in ("GET", "HEAD") and path.startswith("/v1/sets/"):
            return self.send_set(path.split("/")[-1], headers)
        if path.startswith("/v1/tasks/") and path.endswith("/update"):
            return self.update(method, path.split("/")[3], headers, body)
        sent = json.loads(b"".join(body) or b"null")
        with self.lock:
            return self.json(method, path, headers, sent)

    def json(self, method, path, headers, sent):
        if path == "/v1/federation":
            return answer(
                {
                    "server": "fake",
                    "bundle": self.bundle,
                    "enrolment": "open",
                    "attestation": self.attestation,
                    "privacy": {},
                    "max_update_bytes": 1 << 20,
                    "state": "running",
                    "a_later_field": 1,
                }
            )
        if path == "/v1/challenges":
            return answer({"challenge": "prove it", "expires": time.time() + 60})
        if (method, path) == ("DELETE", "/v1/devices/me"):
            self.devices.clear()
            return 204, {}, b""
        if path == "/v1/devices":
            self.enrolled = sent
            device = uuid.uuid4().hex
            self.devices[device] = f"pfl_device_{device}_{uuid.uuid4().hex}"
            return answer({"device": device, "credential": self.devices[device]}, 201)
        if headers.get("Authorization", "").removeprefix("Bearer ") not in self.devices.values():
            return problem(401, "unauthorized")
        if path == "/v1/check-in":
            return self.check_in()
        task = self.tasks[path.split("/")[3]]
        if path.endswith("/decline"):
            task["declined"] = sent["reason"]
            self.round += 1
        else:
            task["evaluations"].append(sent)
        return 204, {}, b""

    def check_in(self):
        if self.round >= self.rounds:
            return answer({"status": "done", "reason": "finished"})
        task = next((t for t in self.tasks.values() if t["round"] == self.round), None)
        if task is None:
            task = {"id": uuid.uuid4().hex, "round": self.round, "accepted": False, "declined": None}
            task |= {"body": bytearray(), "key": None, "evaluations": [], "puts": 0}
            self.tasks[task["id"]] = task
        sets = {"global": self.values, **self.extra_sets}
        layout = layout_of(self.plan, Linear.tensors).shapes
        return answer(
            {
                "status": "task",
                "task": {
                    "id": task["id"],
                    "round": self.round,
                    "version": self.round,
                    "plan": json.loads(self.plan.dump()),
                    "sets": {name: self.blob(values) for name, values in sets.items()},
                    "layout": [{"name": n, "shape": s} for n, s in layout.items()],
                    "reports": self.reports,
                    "privacy": self.privacy,
                    "evaluate": True,
                    "expires": time.time() + self.expires_in_s,
                    "expires_in_s": self.expires_in_s,
                    "update_url": f"/v1/tasks/{task['id']}/update",
                },
            }
        )

    def blob(self, values):
        data = tensors_to_bytes(values)
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return {"sha256": digest, "bytes": len(data), "url": f"/v1/sets/{digest}"}

    def send_set(self, digest, headers):
        data, etag = self.blobs[digest], f'"{digest}"'
        asked = headers.get("Range", "")
        if asked and headers.get("If-Range") == etag:
            first = int(asked.removeprefix("bytes=").rstrip("-"))
            self.downloaded[digest] = self.downloaded.get(digest, 0) + len(data) - first
            ranged = {"ETag": etag, "Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}
            return 206, ranged, data[first:]
        self.downloaded[digest] = self.downloaded.get(digest, 0) + len(data)
        return 200, {"ETag": etag}, data

    def update(self, method, task_id, headers, body):
        task = self.tasks[task_id]
        if method == "HEAD":
            flag = "?1" if task["accepted"] else "?0"
            return 200, {"Upload-Offset": str(len(task["body"])), "Upload-Complete": flag}, b""
        offset, total = int(headers.get("Upload-Offset", 0)), int(headers["Upload-Length"])
        key = headers["Idempotency-Key"]
        task["puts"] += 1
        with self.lock:
            if task["accepted"]:
                whole = b"".join(body)
                if key != task["key"] or (offset == 0 and whole != bytes(task["body"])):
                    return problem(409, "already-uploaded")
                return answer(self.state(task, duplicate=True))
            if task["declined"]:
                return problem(410, "task-expired")
            if offset == 0 or task["key"] != key:
                task["body"], task["key"] = bytearray(), key
            if offset != len(task["body"]):
                return problem(409, "offset-mismatch")
            for piece in body:
                task["body"] += piece
            if len(task["body"]) < total:
                return answer(self.state(task), 202)
            task["accepted"] = True
            self.round += 1
            return answer(self.state(task))

    def state(self, task, duplicate=False):
        status = "accepted" if task["accepted"] else "partial"
        return {"status": status, "task": task["id"], "received": len(task["body"]), "duplicate": duplicate}


def answer(value, status=200, **headers):
    return (
        status,
        {"PFL-Protocol": "1", "Content-Type": "application/json", **headers},
        json.dumps(value).encode(),
    )


def problem(status, code, **headers):
    body = {"type": f"urn:pfl-mobile:problem:{code}", "title": code, "status": status, "detail": code}
    headers = {"PFL-Protocol": "1", "Content-Type": "application/problem+json", **headers}
    return status, headers, json.dumps(body | {"code": code, "mend": "change it"}).encode()


@contextmanager
def serving(fake):
    """The fake on a port of this machine; gives its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pieces(self):
            left = int(self.headers.get("Content-Length", 0))
            while left and (piece := self.rfile.read1(min(left, 4096))):
                left -= len(piece)
                yield piece
            if left:
                self.close_connection = True

        def anything(self):
            status, headers, body = fake.handle(self.command, self.path, self.headers, self.pieces())
            self.send_response(status)
            for name, value in {"PFL-Protocol": "1", **headers}.items():
                self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = anything

        def log_message(self, *args):
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args):
            pass  # connections that a test breaks

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
