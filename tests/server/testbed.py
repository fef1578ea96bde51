"""A small federation: a bundle of a few tensors, devices that send what a test says, a clock that stands still."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import select
from starlette.testclient import TestClient

from pfl_mobile.bundle import Bundle, tensors_to_bytes, write_bundle
from pfl_mobile.plan.upload import UpdateLayout
from pfl_mobile.protocol.bodies import UpdateHead
from pfl_mobile.protocol.update_file import encode
from pfl_mobile.strategies.state import Server as Model
from pfl_server.app import create_app
from pfl_server.federation.config import FederationConfig
from pfl_server.problems import PROBLEMS
from pfl_server.rounds.coordinator import Coordinator
from pfl_server.services import Services
from pfl_server.settings import ServerSettings
from pfl_server.storage.models import Assignment, Federation, Round, Version
from pfl_server.storage.sets import get_state
from tests.server.basics import ADMIN_TOKEN, GENEROUS, Clock

#: Tensors of the small model: name, role, shape.
TENSORS = (("a", "shared", (4,)), ("b", "shared", (2, 3)), ("p", "personal", (2,)))
PLAN: dict[str, Any] = {
    "phases": [
        {"kind": "train", "group": ["role:shared"], "epochs": 1, "optimizer": {"kind": "sgd", "lr": 0.1}}
    ],
    "upload": ["role:shared"],
}

#: Privacy of rounds: noise of the aggregator, and sampling that it rests on.
GAUSSIAN = {"mechanism": "gaussian", "noise_multiplier": 1.0, "clip_norm": 1.0}
POISSON = GAUSSIAN | {"participation": {"sampling": "poisson"}}
FIXED = GAUSSIAN | {"participation": {"sampling": "fixed"}}
#: Rounds of one device.
ONE = {"cohort": 1, "minimum": 1}


def write_small_bundle(
    folder: Path, tensors=TENSORS, plan=PLAN, version: str = "1", strategy: dict[str, Any] | None = None
) -> Path:
    """A bundle whose program does not run: the aggregator never runs one."""
    named = [(n, r, s) for n, r, s in tensors]
    specs = [{"name": n, "shape": list(s), "dtype": "float32"} for n, _, s in named]
    batch = [
        {"name": "x", "shape": [2, 3], "dtype": "float32"},
        {"name": "weight", "shape": [2], "dtype": "float32"},
    ]
    sums = [{"name": n, "shape": [1], "dtype": "float32"} for n in ("loss_sum", "weight_sum")]
    grads = [{"name": f"grad.{n}", "shape": list(s), "dtype": "float32"} for n, _, s in named]
    rng = np.random.default_rng(0)
    values = {n: rng.standard_normal(s).astype(np.float32) for n, _, s in named}
    golden = {"in.gradients.x": np.ones((2, 3), np.float32), "in.gradients.weight": np.ones(2, np.float32)}
    golden |= {f"out.gradients.{s['name']}": np.zeros(s["shape"], np.float32) for s in [*sums, *grads]}
    parts = {
        "name": "small",
        "version": version,
        "programs": [{"name": "gradients", "inputs": [*batch, *specs], "outputs": [*sums, *grads]}],
        "engines": {"torch": {"files": {"model": "model.bin"}}},
        "tensors": [
            {
                **spec,
                "role": r,
                "update": "gradient",
                "module": "m",
                **({"group": "default"} if r == "group" else {}),
            }
            for spec, (_, r, _) in zip(specs, named, strict=True)
        ],
        "modules": [{"name": "m", "kind": "lora", "config": {}}],
        "task": {"kind": "classification", "metrics": ["accuracy"]},
        "encoder": {"kind": "arrays", "batch": 2},
        "strategy": strategy,
    }
    files = {
        "model.bin": b"no program",
        "plan.json": json.dumps({"schema_version": 1, **plan}).encode(),
        "tensors.safetensors": tensors_to_bytes(values),
        "golden.safetensors": tensors_to_bytes(golden),
    }
    write_bundle(folder, parts, files)
    return folder


def federation_config(**changes: Any) -> FederationConfig:
    """Synchronous rounds of three devices without privacy, unless changed: ``rounds={...}`` adds to the rounds."""
    rounds = {"cohort": 3, "minimum": 2, "over_selection": 1.0, "deadline_s": 100.0} | changes.pop(
        "rounds", {}
    )
    privacy = {"mechanism": "none", "clip_norm": 1e6, "cohort": rounds["cohort"]} | changes.pop("privacy", {})
    if privacy["mechanism"] != "none":  # so that the default of 100 rounds may begin
        privacy = {"budget_epsilon": 20.0} | privacy
    base = {"rounds": rounds, "privacy": privacy, "open_sampling": True}
    return FederationConfig.model_validate(base | changes)


def open_bundle(folder: Path, **arguments: Any) -> Bundle:
    return Bundle.open(write_small_bundle(folder, **arguments))


@dataclass
class Small:
    """A federation on the small bundle. The coordinator acts when a test calls ``step``.

    Attributes:
        devices: headers of the devices, in the order they enrolled.
    """

    services: Services
    client: TestClient
    clock: Clock
    coordinator: Coordinator
    devices: list[dict[str, str]]

    # -- devices

    def enrol(self, count: int, group: str = "", **more: Any) -> list[dict[str, str]]:
        """More devices."""
        bundle = self.services.runtime.bundle.model_dump()
        for _ in range(count):
            answer = self.client.post("/v1/devices", json={"bundle": bundle, "group": group} | more)
            assert answer.status_code == 201, answer.text
            self.devices.append({"Authorization": f"Bearer {answer.json()['credential']}"})
        return self.devices[-count:]

    def check_in(self, device: Mapping[str, str], examples: int = 10, **facts: Any) -> dict[str, Any]:
        body = {"bundle": self.services.runtime.bundle.model_dump(), "examples": examples, "facts": facts}
        answer = self.client.post("/v1/check-in", json=body, headers=dict(device))
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def task(self, device: Mapping[str, str], **more: Any) -> dict[str, Any]:
        """The task of a device, which gets one."""
        found = self.check_in(device, **more)
        assert found["status"] == "task", found
        return dict(found["task"])

    def put(self, device: Mapping[str, str], task: Mapping[str, Any], data: bytes, **headers: str) -> Any:
        """Upload bytes as the update of a task."""
        own = {"Idempotency-Key": "key", **{k.replace("_", "-"): v for k, v in headers.items()}}
        return self.client.put(task["update_url"], content=data, headers={**device, **own})

    def send(self, device: Mapping[str, str], value: Any = 0.1, **head: Any) -> dict[str, Any]:
        """Check in and upload an update whose values are ``value``; the task."""
        task = self.task(device)
        answer = self.put(device, task, update_of(task, value, **head))
        assert answer.status_code == 200, answer.text
        return task

    # -- the aggregator

    def step(self) -> None:
        self.coordinator.step()

    def round(self, number: int = -1) -> Round:
        """A round; the newest by default."""
        with self.services.database.read() as session:
            if number < 0:
                return session.scalars(select(Round).order_by(Round.number.desc()).limit(1)).one()
            return session.get_one(Round, number)

    def assignment(self, task: Mapping[str, Any]) -> Assignment:
        with self.services.database.read() as session:
            return session.get_one(Assignment, task["id"])

    def federation(self) -> Federation:
        with self.services.database.read() as session:
            return session.get_one(Federation, 1)

    def version(self) -> Version:
        """The version that is served."""
        with self.services.database.read() as session:
            return session.get_one(Version, session.get_one(Federation, 1).version)

    def model(self) -> Model:
        """The server's state of the version that is served."""
        runtime = self.services.runtime
        return get_state(self.services.blobs, self.version().state_blob, runtime.table, 1)[0]


def layout(task: Mapping[str, Any]) -> UpdateLayout:
    return UpdateLayout({t["name"]: tuple(t["shape"]) for t in task["layout"]})


def update_of(of: Mapping[str, Any], value: Any = 0.1, **head: Any) -> bytes:
    """An update: every value is ``value``, or a flat vector."""
    form = layout(of)
    flat = np.broadcast_to(np.asarray(value, np.float32), (form.size,)).copy()
    fields = {
        "task": of["id"],
        "round": of["round"],
        "version": of["version"],
        "examples": 10,
        "steps": 3,
    }
    fields["reports"] = dict.fromkeys(of["reports"], 0.5)
    return encode(UpdateHead(**(fields | head)), form.unpack(flat), form)


def code(answer: Any) -> str:
    """The code of an answer that is a problem, as it should be."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    assert PROBLEMS[answer.json()["code"]].status == answer.status_code
    return str(answer.json()["code"])


def progress(f: Small, task: Mapping[str, Any], **headers: str) -> dict[str, str | None]:
    """What the aggregator says it has of the upload of the first device."""
    answer = f.client.head(task["update_url"], headers={**f.devices[0], **headers})
    assert answer.status_code == 200
    return {k: answer.headers.get(k) for k in ("Upload-Offset", "Upload-Length", "Upload-Complete")}


@contextlib.contextmanager
def small(
    folder: Path,
    config: FederationConfig | None = None,
    *,
    clock: Clock | None = None,
    devices: int = 0,
    noise: Any = None,
    database: str | None = None,
    settings: Mapping[str, Any] | None = None,
    **bundle: Any,
) -> Iterator[Small]:
    """A federation whose files lie in a folder; opened again there, it goes on.

    Args:
        folder: may hold a federation.
        config: of a new one.
        clock: in place of a new one.
        devices: that enrol.
        noise: in place of secure noise.
        database: URL in place of a file in the folder.
        settings: others of the server.
        bundle: tensors, plan, version, strategy.
    """
    where = folder / "bundle"
    if not where.exists():
        write_small_bundle(where, **bundle)
    base: dict[str, Any] = {"enrolment": "open", "limits": GENEROUS, "dashboard": "off", "database": database}
    served = ServerSettings(bundle=where, data=folder / "data", **base | dict(settings or {}))
    clock = clock or Clock()
    services = Services.open(served, Bundle.open(where), config, clock=clock, admin_token=ADMIN_TOKEN)
    if noise is not None:
        services.runtime.noise = noise
    with TestClient(create_app(services, coordinate=False), raise_server_exceptions=False) as client:
        found = Small(services, client, clock, Coordinator(services), [])
        found.step()
        found.enrol(devices)
        yield found
