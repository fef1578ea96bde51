"""Writes the vectors of what a device decides by itself: noise, epsilon, the privacy policy, pauses, its folder."""

from __future__ import annotations

import json
import random
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from toy import f64
from typing_extensions import override

from pfl_mobile.device.backoff import Backoff, retry_after
from pfl_mobile.device.privacy import PrivacyPolicy
from pfl_mobile.device.sent import SentNoise
from pfl_mobile.device.store import DeviceFolder, Pending
from pfl_mobile.errors import ConfigError
from pfl_mobile.local.state import ModelId
from pfl_mobile.privacy.local import local_epsilon, private_update, release_epsilon, sampled_epsilon
from pfl_mobile.privacy.noise import SUMMANDS, _summed_box_muller
from pfl_mobile.protocol.bodies import Enrolled, TaskPrivacy

TASK = "0123456789abcdef" * 2


def _rounded(value: float) -> float:
    """To ten digits: the last bits of logarithms and the like differ between machines."""
    return float(f"{value:.10g}")


# -- noise


class _Ramp:
    """Noise that can be repeated without a generator: 0, 0.5, -1, 1.5, -2, ..."""

    secure = False

    def begin(self, round: int) -> None:  # noqa: A002
        pass

    def normal(self, size: int) -> np.ndarray:
        return np.array([i * 0.5 * (-1) ** (i + 1) for i in range(size)])


def noise() -> list[dict[str, Any]]:
    """Random bits, and the values that the sampler makes of them."""
    generator = np.random.Generator(np.random.PCG64(11))
    several = [generator.integers(0, 2**64, (2, SUMMANDS, half), np.uint64) for half in (1, 5)]
    several += [np.full((2, SUMMANDS, 1), bits, np.uint64) for bits in (0, 2**64 - 1, 1, 2)]
    found = []
    for words in several:
        bits = [f"{word:016x}" for word in words.reshape(-1)]
        found.append(
            {
                "half": words.shape[2],
                "words": bits,
                "values": [_rounded(x) for x in _summed_box_muller(words)],
            }
        )
    return found


def updates() -> list[dict[str, Any]]:
    """Updates with noise of the device on them."""
    flat = np.array([3.0, 4.0, -0.5, 0.0], np.float32)
    return [
        {
            "flat": _floats(flat),
            "clip_norm": clip_norm,
            "noise_multiplier": z,
            "sent": _floats(private_update(flat, clip_norm, z, _Ramp())),
        }
        for clip_norm in (0.5, 10.0)
        for z in (0.0, 0.25, 4.0)
    ]


def _floats(values: np.ndarray) -> str:
    return " ".join(f"{x:08x}" for x in values.view(np.uint32))


# -- epsilon

DELTAS = (1e-3, 1e-6, 1e-9, 1e-30, 1e-100)
MUS = (1e-3, 0.02, 0.1, 0.5, 1.0, 2.0, 4.0, 7.5, 20.0, 100.0, 1e6)


def epsilons() -> dict[str, Any]:
    """Epsilon of releases, to be met within 1e-8 of it."""
    return {
        "release": [
            {"mu": mu, "delta": d, "epsilon": _rounded(release_epsilon(mu, d))}
            for mu in (0.0, *MUS)
            for d in DELTAS
        ],
        "sampled": [
            {"mu": mu, "rate": q, "delta": d, "epsilon": _rounded(sampled_epsilon(mu, q, d))}
            for mu in MUS
            for q in (1e-4, 0.01, 0.5, 1.0)
            for d in (1e-3, 1e-6, 1e-30)
        ],
        "local": [
            {"inverse_squares": s, "delta": d, "epsilon": _rounded(local_epsilon(s, d))}
            for s in (0.0, 1e-4, 0.0625, 1.0, 30.0)
            for d in (1e-3, 1e-6)
        ],
    }


# -- the policy

STATEMENT = {
    "private": True,
    "epsilon": 0.7,
    "delta": 1e-6,
    "noise_multiplier": 4.0,
    "sampling": "none",
    "sampling_rate": None,
}
GAUSSIAN = {
    "mechanism": "gaussian",
    "clip_norm": 0.5,
    "noise_multiplier": 4.0,
    "local_noise_multiplier": 0.0,
    "statement": STATEMENT,
    "epsilon_after": 6.0,
}
LOCAL = GAUSSIAN | {
    "mechanism": "local",
    "noise_multiplier": 0.0,
    "local_noise_multiplier": 8.0,
    "statement": {},
}
NONE = {"mechanism": "none", "clip_norm": None, "noise_multiplier": 0.0}


def _said(**changes: Any) -> dict[str, Any]:
    return GAUSSIAN | {"statement": STATEMENT | changes}


def _unsaid(*names: str) -> dict[str, Any]:
    return GAUSSIAN | {"statement": {n: v for n, v in STATEMENT.items() if n not in names}}


#: Policies by name.
POLICIES: dict[str, dict[str, Any]] = {
    "default": {},
    "none": {"require": False},
    "only_local": {"only_local": True},
    "loud": {"only_local": True, "min_noise": 9.0},
    "no_reports": {"report": False},
    "strict": {"max_epsilon": 1.0, "max_delta": 1e-9},
}
#: Privacy of tasks, names of numbers that go along, z of the updates that were sent before.
ASKED: list[tuple[dict[str, Any], list[str], list[float]]] = [
    (GAUSSIAN, [], []),
    (GAUSSIAN, ["sent_loss"], [1.0]),
    (GAUSSIAN | {"mechanism": "matrix"}, [], []),
    (GAUSSIAN | {"local_noise_multiplier": 20.0}, [], []),
    (LOCAL, [], []),
    (LOCAL, ["sent_loss", "more"], []),
    (NONE, ["sent_loss"], []),
    (LOCAL, [], [8.0] * 20),
    (LOCAL, [], [0.1]),
    (LOCAL | {"statement": {"delta": 1e-12}}, [], []),
    (LOCAL | {"statement": {"delta": "small"}}, [], []),
    (LOCAL | {"local_noise_multiplier": 0.0}, [], []),
    (LOCAL | {"local_noise_multiplier": 0.2}, [], []),
    (NONE, [], []),
    (NONE | {"clip_norm": 1.0}, [], []),
    *((GAUSSIAN | {"clip_norm": c}, [], []) for c in (None, 0.0, -1.0, 1e-13, 1e13)),
    *((GAUSSIAN | {"noise_multiplier": z}, [], []) for z in (0.0, -1.0, 1e-200, 0.15, 4.001, 4.1)),
    *((GAUSSIAN | {"epsilon_after": e}, [], []) for e in (None, 0.1, 0.699, 9.99, 10.1, 1e9)),
    *((_said(private=value), [], []) for value in (False, None, "yes", 1)),
    *((_said(delta=value), [], []) for value in (None, 0, -1e-6, "1e-6", 1e-5, 1e-120, True, 1.0000001e-6)),
    *((_said(epsilon=value), [], []) for value in (None, -1, 6.1, "0.7", False)),
    *((_said(noise_multiplier=value), [], []) for value in (None, 5, "4", [4.0], {"z": 4})),
    *((_said(sampling="poisson", sampling_rate=q), [], []) for q in (0.01, 1, 0, -0.5, 1.5, None, "0.1")),
    (_said(sampling="fixed", sampling_rate=0.9) | {"epsilon_after": 0.7001}, [], []),
    (_said(sampling="moon"), [], []),
    (_said(sampling=None, sampling_rate=0.5), [], []),
    (_unsaid("sampling", "sampling_rate"), [], []),
    (_unsaid("noise_multiplier"), [], []),
    (_unsaid("epsilon"), [], []),
    (_unsaid("private"), [], []),
]
#: Settings that a policy refuses, or does not.
SETTINGS: list[dict[str, Any]] = [
    {},
    *({"max_epsilon": e} for e in (0.0, -1.0, 20.0, 20.5)),
    *({"max_delta": d} for d in (0.0, 1e-101, 1e-100, 1e-3, 2e-3)),
    {"min_noise": -1.0, "only_local": True},
    {"min_noise": 1.0},
    {"only_local": True, "require": False},
]


def policies() -> dict[str, Any]:
    """What policies say of tasks: the refusal in words, or null; whether a report may be sent."""
    cases = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, (privacy, reports, before) in enumerate(ASKED):
            sent = SentNoise(Path(scratch) / f"{number}.json")
            for z in before:
                sent.add(z)
            task = TaskPrivacy.model_validate(privacy)
            verdicts = {}
            for name, settings in POLICIES.items():
                policy = PrivacyPolicy(**settings)
                verdicts[name] = {
                    "refusal": policy.refusal(task, reports, sent),
                    "refusal_counted": policy.refusal(task, reports, sent, counted=True),
                    "may_report": policy.may_report(task),
                }
            cases.append({"privacy": privacy, "reports": reports, "sent": before, "verdicts": verdicts})
    settings = [{"settings": given, "refused": _refused(given)} for given in SETTINGS]
    return {"policies": POLICIES, "settings": settings, "cases": cases}


def _refused(settings: dict[str, Any]) -> bool:
    try:
        PrivacyPolicy(**settings)
    except ConfigError:
        return True
    return False


# -- pauses


class _Drawn(random.Random):
    """Draws one number."""

    def __init__(self, u: float) -> None:
        super().__init__(0)
        self.u = u

    @override
    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * self.u


NOW = 1_700_000_000.0
HEADERS = (
    *("7", "0", "007", " 12 ", "86401", "99999999999"),
    *("", "soon", "-3", "1.5", "1e3", "0x10"),
    *("Tue, 14 Nov 2023 22:13:30 GMT", "Tue, 14 Nov 2023 22:13:10 GMT", "Tue, 32 Nov 2023 22:13:30 GMT"),
)


def pauses() -> dict[str, Any]:
    """Seconds to wait after failures, and what ``Retry-After`` says at a time."""
    settings = ({}, {"first_s": 0.01, "most_s": 0.05}, {"first_s": 8.0, "most_s": 1e6})
    cases = [
        {
            "backoff": given,
            "failures": failures,
            "told_s": told,
            "u": u,
            "pause_s": f64(Backoff(**given).pause(failures, told, _Drawn(u))),
        }
        for given in settings
        for failures in (1, 2, 3, 8, 61, 1000)
        for told in (None, 0.0, 3.0, 1e9)
        for u in (0.0, 0.25, 1.0)
    ]
    with mock.patch("pfl_mobile.device.backoff.time.time", return_value=NOW):
        told = [{"header": header, "now": NOW, "seconds": retry_after(header)} for header in HEADERS]
    return {"pauses": cases, "retry_after": told}


# -- the folder

MODEL = ModelId("keyboard", "1.2", "ab" * 32)
PENDING = Pending(
    task=TASK,
    round=3,
    url=f"/v1/tasks/{TASK}/update",
    key="0f" * 16,
    deadline=1_700_000_600.25,
    sha256="9f64a747e1b97f131fabb6b447296c9b6f0201e79fb3c5356e6c77e89b6a806a",
    bytes=4,
    privacy=TaskPrivacy.model_validate(GAUSSIAN).model_dump(mode="json"),
    reports=("sent_loss",),
    evaluation={
        "global": {"loss": {"sum": 12.5, "weight": 40.0}},
        "personalized": {"loss": {"sum": 9.0, "weight": 40.0}},
        "adopted": True,
    },
    adopts=7,
    instead_of=6,
    copies=("control",),
    server="https://pfl.example.org",
    device=TASK,
)
UPDATE = bytes([1, 2, 3, 4])


def folder() -> dict[str, Any]:
    """The files of a device's folder as Python writes them, and what they hold."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "device"
        with DeviceFolder(place, MODEL, "ann") as kept:
            membership = kept.join(
                "https://pfl.example.org", Enrolled(device=TASK, credential=f"pfl_device_{TASK}_x")
            )
            for z in (8.0, 2.0):
                kept.sent.add(z)
            kept.put(PENDING, UPDATE)
            epsilon = kept.sent.epsilon(1e-6)
        names = ("device.json", "user.json", "sent.json", f"queue/{TASK}.json")
        files = {name: (place / name).read_text() for name in names}
    return {
        "model": [MODEL.name, MODEL.version, MODEL.fingerprint],
        "user": "ann",
        "files": files,
        "update": {"name": f"queue/{TASK}.update", "hex": UPDATE.hex()},
        "membership": asdict(membership),
        "pending": asdict(PENDING),
        "sent": {"updates": 2, "delta": 1e-6, "epsilon": _rounded(epsilon)},
    }


def device_files() -> dict[str, bytes]:
    """Every file with its content."""
    privacy = {"noise": noise(), "updates": updates(), "epsilon": epsilons(), **policies()}
    return {
        name: (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()
        for name, value in {"privacy.json": privacy, "device.json": {**pauses(), "folder": folder()}}.items()
    }
