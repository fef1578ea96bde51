"""Numbers, times and codes in words, as the dashboard shows them."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime

from pfl_mobile.local.results import is_recall
from pfl_server.problems import PROBLEMS

#: What a device says when it declines a task (``pfl_mobile.protocol.bodies.Decline``).
DECLINED = {
    "no_examples": "It has too few examples to train on",
    "good_enough": "The shared model is good enough for it",
    "diverged": "Its training diverged",
    "cancelled": "Its user or system stopped it",
    "privacy": "It asks for more privacy than the round gives",
    "engine": "Its engine failed",
    "storage": "Its storage is full",
    "plan": "It cannot carry out the plan",
    "out_of_memory": "It ran out of memory",
    "too_slow": "It would not be done in time",
}

#: The problem of a round whose merge failed, beside those that are answered.
MERGE_FAILED = "merge-failed"

#: States of rounds, with what they mean.
ROUND_STATES = {
    "open": "takes updates",
    "closing": "takes no more updates, is merged next",
    "merging": "is being merged",
    "merged": "merged into a new model version",
    "failed": "the merge gave no usable model; nothing was published",
    "abandoned": "ended without a merge; nothing was published",
}

#: States of devices, with what they mean.
DEVICE_STATES = {
    "active": "enrolled and taking part",
    "revoked": "an admin ended its part",
    "left": "it left by itself",
}


def reason(code: str | None) -> str:
    """Why an update was refused or a task declined, as a sentence without its full stop."""
    if not code:
        return "No reason was given"
    if code == MERGE_FAILED:
        return "The merge of a round gave no usable model; the round says why"
    if code in DECLINED:
        return DECLINED[code]
    return PROBLEMS[code].title if code in PROBLEMS else code


def count(number: int) -> str:
    """A whole number with its thousands apart."""
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def many(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: 1 device, 2 devices."""
    return f"{count(number)} {noun if number == 1 else plural or noun + 's'}"


def share(part: int, whole: int) -> str:
    """A part in percent of the whole; empty for a whole of nothing."""
    return f"{100 * part / whole:.0f}\N{NO-BREAK SPACE}%" if whole else ""


def duration(seconds: float) -> str:
    """A time span in its one or two largest units: ``45 s``, ``4 min``, ``2 h 10 min``, ``3 d``."""
    left = max(0, math.floor(seconds))
    if left < 60:
        return f"{left} s"
    if left < 3600:
        return f"{left // 60} min"
    if left < 86400:
        hours, minutes = left // 3600, left % 3600 // 60
        return f"{hours} h {minutes} min" if minutes and hours < 10 else f"{hours} h"
    return f"{left // 86400} d"


def moment(seconds: float) -> str:
    """A time as ``2026-11-20 13:05`` UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def iso(seconds: float) -> str:
    """A time for machines, ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def size(number: int | None) -> str:
    """A number of bytes in decimal units."""
    if number is None:
        return "unknown"
    value, unit = float(number), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.1f} {unit}"


def figure(metric: str, value: float) -> str:
    """A metric for people: recalls in percent, others with four digits."""
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%" if is_recall(metric) else f"{value:.4g}"


def metric_name(metric: str) -> str:
    """What a metric is, for people."""
    if is_recall(metric):
        k = int(metric[3:])
        return "right at the first guess" if k == 1 else f"right within {k} guesses"
    return metric.replace("_", " ")


def epsilon(value: float) -> str:
    """A privacy loss with three digits, rounded up so that it never looks smaller than it is."""
    return _three_digits(value, math.ceil)


def epsilon_left(value: float) -> str:
    """What is left of a privacy budget with three digits, rounded down so that it never looks larger than it is."""
    return _three_digits(value, math.floor)


def _three_digits(value: float, whole: Callable[[float], int]) -> str:
    if value <= 0:
        return "0"
    step = 10 ** (math.floor(math.log10(value)) - 2)
    exact = round(value / step)
    # a value like 2.9999999999 is 3, not 2.99
    number = exact if math.isclose(value / step, exact, rel_tol=1e-9) else whole(value / step)
    return f"{number * step:.3g}"


def power(value: float) -> str:
    """A small probability: powers of ten as such."""
    exponent = round(math.log10(value))
    if not math.isclose(value, 10.0**exponent, rel_tol=1e-9):
        return f"{value:.3g}"
    digits = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    return f"10{str(exponent).translate(digits)}"


#: Numbers of a merge: name, explanation. Those of a single device, such as the largest norm, are not shown.
MERGE = {
    "updates": ("Updates", "devices whose update was merged"),
    "weight": ("Total weight", "sum of the devices' weights, each at most 1 where noise is added"),
    "median_norm": ("Median norm", "half of the updates were shorter, as L2 norm before clipping"),
    "clipped": ("Clipped", "share of the updates that were shortened to the clipping bound"),
    "mean_staleness": ("Mean staleness", "versions between an update's start and this merge"),
    "seconds": ("Seconds", "time that the merge took"),
}
#: Those that come from single updates without noise: for operators, as the privacy statement says.
RAW = ("median_norm", "clipped")


#: Admin actions of the audit log in words.
ACTIONS = {
    "pause": "Paused",
    "resume": "Resumed",
    "abandon-round": "Abandoned a round",
    "roll-back": "Rolled back",
    "revoke-device": "Revoked a device",
    "create-token": "Made an enrolment token",
    "delete-token": "Deleted an enrolment token",
    "sign-in": "Signed in to the dashboard",
    "sign-out": "Signed out of the dashboard",
    "finished": "Training is finished",
    "spent": "The privacy budget is spent",
}
