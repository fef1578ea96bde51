"""Limits per device and per address: how often requests come (token buckets), and how many are open at a time."""

from __future__ import annotations

import hashlib
import ipaddress
import threading
import time
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from pfl_server.settings import LimitsConfig


class TokenBuckets:
    """One bucket of ``burst`` tokens for each key; ``rate`` tokens flow in every second.

    A bucket that was forgotten is full again, so memory is bounded: at most ``tracked`` are kept.
    """

    def __init__(self, rate: float, burst: int, tracked: int) -> None:
        self._rate, self._burst, self._tracked = rate, float(burst), tracked
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: Hashable, now: float) -> float:
        """Take one token; 0, or the seconds until there is one.

        Args:
            key: whose bucket.
            now: seconds of any clock that does not go back.
        """
        with self._lock:
            left, before = self._buckets.pop(key, (self._burst, now))
            left = min(self._burst, left + max(0.0, now - before) * self._rate)
            wait = 0.0 if left >= 1.0 else (1.0 - left) / self._rate
            self._buckets[key] = (left if wait else left - 1.0, now)
            while len(self._buckets) > self._tracked:
                self._buckets.popitem(last=False)
        return wait


class OpenRequests:
    """Requests that are open, by who sent them. For the thread of the event loop.

    Args:
        most: in all.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: Counter[Hashable] = Counter()
        self._all = 0

    def begin(self, key: Hashable, most: int) -> Literal["begun", "own", "all"]:
        """Count a request, unless ``key`` has ``most`` open already (``own``), or there are too many (``all``)."""
        if self._open[key] >= most:
            return "own"
        if self._all >= self._most:
            if not self._open[key]:
                del self._open[key]
            return "all"
        self._open[key] += 1
        self._all += 1
        return "begun"

    def end(self, key: Hashable) -> None:
        """Tell that a request of ``key`` is over."""
        self._all -= 1
        self._open[key] -= 1
        if not self._open[key]:
            del self._open[key]


class RequestLimits:
    """All limits of one process on requests.

    A request with a credential that was seen to be valid counts for its device, whatever the address: many phones
    share one. Any other request counts for its address; so guessing credentials is limited, and a stranger cannot
    use up a device's allowance without its credential.
    """

    def __init__(self, config: LimitsConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self.open = OpenRequests(config.open)
        self._clock = clock
        self._devices = TokenBuckets(config.device_rate, config.device_burst, config.tracked)
        self._addresses = TokenBuckets(config.address_rate, config.address_burst, config.tracked)
        self._enrolments = TokenBuckets(config.enrol_rate, config.enrol_burst, config.tracked)
        self._valid: OrderedDict[bytes, None] = OrderedDict()
        self._lock = threading.Lock()

    def wait(self, authorization: bytes | None, address: str | None, *, enrolling: bool = False) -> float:
        """Count one request; 0, or the seconds after which it may come again.

        Args:
            authorization: the header, as sent.
            address: of the client; None where there is none (a Unix socket).
            enrolling: whether it asks for a credential.
        """
        now = self._clock()
        if authorization is not None and not enrolling:
            digest = _digest(authorization)
            if digest in self._valid:
                return self._devices.take(digest, now)
        place = network(address)
        if enrolling and (wait := self._enrolments.take(place, now)):
            return wait
        return self._addresses.take(place, now)

    def sender(self, authorization: bytes | None, address: str | None) -> tuple[Hashable, int]:
        """Whom an open request counts for, and how many that one may have."""
        if authorization is not None and (digest := _digest(authorization)) in self._valid:
            return digest, self.config.device_open
        return network(address), self.config.address_open

    def seen_valid(self, authorization: str) -> None:
        """Tell that the credential in this header was checked and is valid."""
        digest = _digest(authorization.encode("latin-1", "replace"))
        with self._lock:
            self._valid.pop(digest, None)
            self._valid[digest] = None
            while len(self._valid) > self.config.tracked:
                self._valid.popitem(last=False)

    def seen_invalid(self, authorization: str) -> None:
        """Tell that the credential in this header is no longer valid."""
        with self._lock:
            self._valid.pop(_digest(authorization.encode("latin-1", "replace")), None)


def network(address: str | None) -> str:
    """What of an address is limited together: all of an IPv4 address, the first half of an IPv6 one."""
    if address is None or ":" not in address:
        return address or ""
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(found.ipv4_mapped) if found.ipv4_mapped else found.exploded[:19]


def _digest(authorization: bytes) -> bytes:
    return hashlib.blake2b(authorization.rpartition(b" ")[2], digest_size=16).digest()
