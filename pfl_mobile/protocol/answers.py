"""Which answers are an aggregator's, and what a device does with one that is not: ``server/PROTOCOL.md``, "Answers".

Between a device and its aggregator there are proxies, sign-in pages of networks, and addresses with a mistake in them.
All of them answer with statuses and bodies of their own, and none may be taken for a word of the aggregator: a device
would drop an update because of a proxy's 404. So every answer of an aggregator carries `HEADER`, and only those do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from pfl_mobile.errors import PASSING
from pfl_mobile.protocol.bodies import PROTOCOL

if TYPE_CHECKING:
    from collections.abc import Mapping

#: On every answer of an aggregator, errors among them: the version of the protocol that the answer is in.
HEADER = "PFL-Protocol"

Kind = Literal[
    "answer",
    "problem",
    "other-protocol",
    "changed-on-the-way",
    "redirect",
    "too-large-on-the-way",
    "proxy-refuses",
    "busy-on-the-way",
    "not-the-aggregator",
]
Then = Literal["use", "decide-by-code", "retry", "end"]


class Verdict(NamedTuple):
    """What an answer is.

    Attributes:
        kind: what it is.
        then: ``use`` its body; ``decide-by-code`` of the problem; ``retry`` after a pause; ``end``: the same request
            would not do better, and what waits to be sent stays in the queue.
    """

    kind: Kind
    then: Then


def judge(status: int, headers: Mapping[str, str]) -> Verdict:
    """What an answer is, by its status and headers alone.

    Args:
        status: of the answer.
        headers: by name, in any case of letters; only those that the rule names matter.
    """
    found = {name.lower(): value.strip() for name, value in headers.items()}
    protocol = found.get(HEADER.lower())
    if protocol is None:
        return _of_another(status)
    if protocol != str(PROTOCOL):
        return Verdict("other-protocol", "end")
    if found.get("content-encoding", "identity").lower() != "identity":
        return Verdict("changed-on-the-way", "end")
    if 200 <= status < 300:
        return Verdict("answer", "use")
    if status >= 400:
        return Verdict("problem", "retry" if status in PASSING else "decide-by-code")
    return Verdict("redirect", "end")


def _of_another(status: int) -> Verdict:
    """What an answer without the header is."""
    if 300 <= status < 400:
        return Verdict("redirect", "end")
    if status == 413:
        return Verdict("too-large-on-the-way", "end")
    if status == 407:
        return Verdict("proxy-refuses", "end")
    # 501, 505 and 511: no such method, no such HTTP, and a network that wants a sign-in do not pass by themselves
    if status in (408, 425, 429) or (status >= 500 and status not in (501, 505, 511)):
        return Verdict("busy-on-the-way", "retry")
    return Verdict("not-the-aggregator", "end")
