"""Vectors of the protocol between devices and the aggregator: update files, bodies, clipping. See generate.py."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from pfl_mobile.device.privacy import protect
from pfl_mobile.plan.optimizers import Sgd
from pfl_mobile.plan.phases import TrainPhase
from pfl_mobile.plan.schema import Plan
from pfl_mobile.protocol import bodies
from pfl_mobile.protocol.answers import HEADER, judge
from pfl_mobile.protocol.bodies import TaskPrivacy, UpdateHead
from pfl_mobile.protocol.update_file import canonical, encode, payload_offset

TASK = "0123456789abcdef0123456789abcdef"
HEAD = UpdateHead(
    task=TASK,
    round=3,
    version=2,
    examples=17,
    steps=5,
    clipped=True,
    reports={"sent_loss": 0.25, "größe": -1.5},
)
#: Names whose order differs between UTF-8, UTF-16 and locales; a scalar and an empty tensor are among them.
LAYOUT = canonical(
    {"Z": (2,), "a.lora_A": (2, 3), "copy:c_i:Z": (2,), "é": (), "\uff5a": (0, 2), "\U0001f600": (1,)}
)
DIGEST = "c0ffee" + "0" * 58
BUNDLE = {"name": "keyboard", "version": "7", "fingerprint": "ab" * 32}


def _values() -> np.ndarray:
    return np.array([1.5, -2.25, 0.0, -0.0, 1e-45, 3.4e38, 0.1, 7.0, -1e-20, 2.0, -3.0, 0.5], np.float32)


def _rewritten(data: bytes, change: Callable[[dict[str, Any]], bytes | None]) -> bytes:
    """The file with its header changed."""
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    text = change(header) or json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def _head(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        head = json.loads(header["__metadata__"]["head"]) | changes
        header["__metadata__"]["head"] = json.dumps(head)

    return change


def _set(name: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header[name].update(changes)


def _more(header: dict[str, Any]) -> None:
    header["more"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


def _swapped(header: dict[str, Any]) -> None:
    header["Z"], header["copy:c_i:Z"] = header["copy:c_i:Z"], header["Z"]


def _twice(header: dict[str, Any]) -> bytes:
    return (json.dumps(header)[:-1] + ', "Z": ' + json.dumps(header["Z"]) + "}").encode()


WRONG, BAD = "wrong-tensors", "malformed-update"
#: What is changed, and the problem's code.
REFUSED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another-dtype": (_set("Z", dtype="F16"), WRONG),
    "another-shape": (_set("Z", shape=[1, 2]), WRONG),
    "offsets-overlap": (_set("a.lora_A", data_offsets=[0, 24]), WRONG),
    "offsets-leave-a-gap": (_set("Z", data_offsets=[4, 12]), WRONG),
    "tensors-in-another-order": (_swapped, WRONG),
    "a-tensor-missing": (lambda header: header.pop("Z") and None, WRONG),
    "a-tensor-too-many": (_more, WRONG),
    "a-tensor-twice": (_twice, BAD),
    "no-metadata": (lambda header: header.pop("__metadata__") and None, BAD),
    "another-format": (lambda header: header["__metadata__"].update(format="pt"), BAD),
    "metadata-too-many": (lambda header: header["__metadata__"].update(note="x"), BAD),
    "head-lacks-a-field": (lambda header: header["__metadata__"].update(head="{}"), BAD),
    "head-with-a-field-too-many": (_head(user="ann"), BAD),
    "head-with-a-negative-number": (_head(examples=-1), BAD),
    "head-with-a-number-as-text": (_head(round="3"), BAD),
    "not-json": (lambda _: b"{", BAD),
    "not-utf8": (lambda _: b"{\xff}", BAD),
    "nested-too-deep": (lambda _: b'{"Z": ' + b"[" * 2000 + b"]" * 2000 + b"}", BAD),
}


def update_files() -> dict[str, bytes]:
    """updates/*.safetensors and updates.json."""
    valid = encode(HEAD, LAYOUT.unpack(_values()), LAYOUT)
    offset = payload_offset(LAYOUT, len(valid))
    refused = {name: (_rewritten(valid, change), code) for name, (change, code) in REFUSED.items()}
    refused |= {
        "cut-short": (valid[:-4], WRONG),
        "longer-than-its-tensors": (valid + b"\0\0\0\0", WRONG),
        "header-length-of-another-file": (struct.pack("<Q", offset) + valid[8:], WRONG),
        "not-finite": (valid[:-4] + struct.pack("<f", float("nan")), "update-not-finite"),
    }
    listed = [
        {"file": f"updates/{name}.safetensors", "refused": code}
        for name, (_, code) in sorted(refused.items())
    ]
    about = {
        "layout": [{"name": name, "shape": list(shape)} for name, shape in LAYOUT.shapes.items()],
        "valid": {
            "file": "updates/valid.safetensors",
            "payload_offset": offset,
            "head": HEAD.model_dump(mode="json"),
            "values": " ".join(f"{x:08x}" for x in _values().view(np.uint32)),
        },
        "refused": listed,
    }
    files = {f"updates/{name}.safetensors": data for name, (data, _) in refused.items()}
    return files | {"updates/valid.safetensors": valid, "updates.json": _json(about)}


def clip_vectors() -> bytes:
    """clip.json: what a device makes of an update before it sends it."""
    cases = []
    for clip_norm in (1.0, 0.1, 1e3, 1e-9):
        for values in (
            _values()[:5],
            np.array([3.0, 4.0], np.float32),
            np.full(7, 1e20, np.float32),
            np.zeros(3),
        ):
            flat = np.asarray(values, np.float32)
            privacy = TaskPrivacy(mechanism="gaussian", clip_norm=clip_norm, noise_multiplier=1.0)
            found = protect(flat, privacy)
            cases.append(
                {
                    "clip_norm": clip_norm,
                    "values": " ".join(f"{x:08x}" for x in flat.view(np.uint32)),
                    "norm": struct.pack(">d", found.norm).hex(),
                    "clipped": found.clipped,
                    "sent": " ".join(f"{x:08x}" for x in found.flat.view(np.uint32)),
                }
            )
    return _json(cases)


OURS = {HEADER: "1", "Content-Type": "application/json"}
PAGE = {"Content-Type": "text/html"}
#: Status and headers of answers: of an aggregator, then of what may stand in its place.
ANSWERS: list[tuple[int, dict[str, str]]] = [
    *((status, OURS) for status in (200, 201, 202, 206, 299, 307)),
    (204, {HEADER: "1"}),
    (200, {HEADER.lower(): " 1 ", "Content-Encoding": "identity"}),
    *((s, OURS) for s in (400, 401, 403, 404, 408, 409, 410, 413, 422, 425, 429, 500, 501, 502, 503, 504)),
    *((status, {HEADER: "1", "Content-Encoding": "gzip"}) for status in (200, 404)),
    *((status, {HEADER: version}) for status in (200, 404, 503) for version in ("2", "0", "", "1, 1", "1.0")),
    *((status, PAGE) for status in (200, 204, 301, 302, 307, 400, 401, 403, 404, 405, 407, 408, 413, 418)),
    *((status, PAGE) for status in (421, 425, 429, 451, 500, 501, 502, 503, 504, 505, 511, 520, 530)),
    *((status, {"Content-Type": "application/json"}) for status in (200, 404, 413, 503)),
    *((status, {"Content-Type": "application/problem+json"}) for status in (404, 410, 413, 503)),
    (200, {"Content-Type": "application/json", "Content-Encoding": "gzip"}),
    (206, {"Content-Type": "application/vnd.safetensors", "Content-Range": "bytes 1-2/3"}),
    (101, {"Upgrade": "websocket"}),
]


def answers() -> list[dict[str, Any]]:
    """What a device makes of each of ANSWERS."""
    found = []
    for status, headers in ANSWERS:
        kind, then = judge(status, headers)
        found.append({"status": status, "headers": headers, "is": kind, "then": then})
    return found


def protocol_bodies() -> bytes:
    """protocol.json: an example of every body, bodies that are refused, and which answers are an aggregator's."""
    download = {"sha256": DIGEST, "bytes": 4096, "url": f"/v1/sets/{DIGEST}"}
    plan = Plan(
        phases=(TrainPhase(epochs=1, optimizer=Sgd(lr=0.1)),), upload=("role:shared",), seed=2**63 - 1
    )
    task = {
        "id": TASK,
        "round": 3,
        "version": 2,
        "plan": plan.model_dump(mode="json"),
        "sets": {"global": download},
        "layout": [{"name": name, "shape": list(shape)} for name, shape in LAYOUT.shapes.items()],
        "reports": ["sent_loss"],
        "privacy": {
            "mechanism": "gaussian",
            "clip_norm": 0.5,
            "noise_multiplier": 1.1,
            "local_noise_multiplier": 0.0,
            "statement": {"epsilon": 0.7, "delta": 1e-6},
            "epsilon_after": 0.75,
        },
        "evaluate": True,
        "expires": 1700000600.0,
        "expires_in_s": 600.0,
        "update_url": f"/v1/tasks/{TASK}/update",
    }
    metrics = {"loss": {"sum": 12.5, "weight": 40.0}, "top3": {"sum": 9.0, "weight": 40.0}}
    valid: dict[str, list[Any]] = {
        "FederationInfo": [
            {
                "protocol": 1,
                "server": "pfl-mobile",
                "bundle": BUNDLE,
                "enrolment": "token",
                "attestation": ["play-integrity"],
                "privacy": {"mechanism": "gaussian"},
                "groups": ["de", "fr"],
                "max_update_bytes": 70000,
                "state": "running",
            }
        ],
        "Challenge": [{"challenge": "c2VjcmV0", "expires": 1700000300.0}],
        "Enrolment": [
            {"bundle": BUNDLE},
            {
                "bundle": BUNDLE,
                "token": "pfl_enrol_x",
                "group": "de",
                "attestation": {"kind": "play-integrity", "challenge": "c2VjcmV0", "verdict": "eyJ"},
            },
        ],
        "Enrolled": [{"device": TASK, "credential": f"pfl_device_{TASK}_{'0' * 64}"}],
        "CheckIn": [
            {"bundle": BUNDLE, "examples": 120},
            {
                "bundle": BUNDLE,
                "examples": 0,
                "facts": {
                    "engine": "executorch",
                    "platform": "android-15",
                    "sdk": "0.1.0",
                    "idle": False,
                    "charging": True,
                    "unmetered": True,
                    "free_bytes": 9007199254740991,
                },
            },
        ],
        "CheckedIn": [
            {"status": "task", "task": task, "retry_after_s": None, "reason": None},
            {"status": "wait", "task": None, "retry_after_s": 61.5, "reason": "full"},
            {"status": "done", "task": None, "retry_after_s": None, "reason": "spent"},
        ],
        "LatestVersion": [
            {
                "version": 2,
                "round": 1,
                "sets": {"global": download},
                "privacy": {"epsilon": 0.7},
                "created": 1.7e9,
            }
        ],
        "UpdateHead": [HEAD.model_dump(mode="json")],
        "UploadState": [
            {"status": "accepted", "task": TASK, "received": 4096, "duplicate": False},
            {"status": "partial", "task": TASK, "received": 100, "duplicate": False},
        ],
        "Decline": [{"reason": "privacy"}, {"reason": "diverged"}],
        "EvaluationReport": [{"global": metrics, "personalized": metrics, "adopted": True}],
        "ProblemBody": [
            {
                "type": "urn:pfl-mobile:problem:round-closed",
                "title": "The round takes no more updates",
                "status": 410,
                "detail": "round 3 takes no more updates",
                "code": "round-closed",
                "mend": "check in again",
                "instance": None,
            }
        ],
    }
    refused: dict[str, list[Any]] = {
        "Enrolment": [{}, {"bundle": BUNDLE | {"fingerprint": "AB" * 32}}, {"bundle": BUNDLE, "user": "ann"}],
        "CheckIn": [
            {"bundle": BUNDLE},
            {"bundle": BUNDLE, "examples": -1},
            {"bundle": BUNDLE, "examples": 2**53},
            {"bundle": BUNDLE, "examples": 1, "facts": {"location": "x"}},
        ],
        "Decline": [{"reason": "bored"}, {}],
        "EvaluationReport": [
            {"global": metrics, "personalized": metrics},
            {"global": {"loss": {"sum": 1.0, "weight": 0.0}}, "personalized": metrics, "adopted": True},
        ],
    }
    for name, several in valid.items():
        for body in several:
            getattr(bodies, name).model_validate(body)
    return _json({"valid": valid, "refused": refused, "answers": answers()})


def protocol_files() -> dict[str, bytes]:
    """Every file with its content."""
    return {**update_files(), "clip.json": clip_vectors(), "protocol.json": protocol_bodies()}


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()
