"""What tests of the server need that is quick to import."""

from __future__ import annotations

import socket

from pfl_mobile.privacy import SimulatedNoise
from pfl_server.settings import LimitsConfig

ADMIN_TOKEN = "pfl_admin_" + "0123456789abcdef" * 4
#: Limits that no ordinary test meets.
GENEROUS = LimitsConfig(
    device_rate=1e6,
    device_burst=10**6,
    address_rate=1e6,
    address_burst=10**6,
    enrol_rate=1e6,
    enrol_burst=10**6,
)


class RepeatingNoise(SimulatedNoise):
    """Noise that a test can draw again, and that the server takes for secure."""

    secure = True


class Clock:
    """Seconds since 1970 that pass only when a test says so."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def pass_time(self, seconds: float) -> None:
        self.now += seconds


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
