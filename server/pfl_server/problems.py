"""Problems as RFC 9457 answers: one class for each code, so that clients and counters know them by name."""

from __future__ import annotations

import json
from typing import Any, ClassVar

#: Prefix of the ``type`` member; the code follows.
TYPE_PREFIX = "urn:pfl-mobile:problem:"


class Problem(Exception):
    """Base of all problems that the aggregator answers with.

    Args:
        detail: what is wrong in this request, naming the thing; no personal data.
        mend: what the client can do.
        headers: of the answer, for instance ``Retry-After``.
        extra: further members of the answer.
    """

    status: ClassVar[int] = 400
    code: ClassVar[str] = "bad-request"
    title: ClassVar[str] = "The request is invalid"

    def __init__(
        self,
        detail: str,
        *,
        mend: str,
        headers: dict[str, str] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail, self.mend = detail, mend
        self.headers, self.extra = headers or {}, extra or {}

    def to_json(self, instance: str | None = None) -> dict[str, Any]:
        """The body of the answer."""
        body: dict[str, Any] = {
            "type": TYPE_PREFIX + self.code,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "mend": self.mend,
        }
        return body | ({"instance": instance} if instance else {}) | self.extra


def _problem(status: int, code: str, title: str) -> type[Problem]:
    name = "".join(part.capitalize() for part in code.split("-"))
    return type(name, (Problem,), {"status": status, "code": code, "title": title, "__doc__": title + "."})


# Requests
InvalidRequest = _problem(422, "invalid-request", "The request does not follow the schema")
NotFound = _problem(404, "not-found", "There is no such thing")
MethodNotAllowed = _problem(405, "method-not-allowed", "This address has no such method")
RateLimited = _problem(429, "rate-limited", "Too many requests")
BodyTooLarge = _problem(413, "body-too-large", "The body is larger than allowed")
HeadTooLarge = _problem(431, "head-too-large", "The head of the request is larger than allowed")
LengthRequired = _problem(411, "length-required", "The length of the body must be told")
BodyTooSlow = _problem(408, "body-too-slow", "The body arrives too slowly")
UnsupportedMedia = _problem(415, "unsupported-media-type", "The body has another type")
BadRange = _problem(416, "bad-range", "The range lies outside the content")
UnsupportedProtocol = _problem(400, "unsupported-protocol", "This version of the protocol is not spoken here")
Conflict = _problem(409, "conflict", "The present state does not allow this")
Unavailable = _problem(503, "unavailable", "The aggregator cannot do this now")
BadRequest = _problem(400, "bad-request", "The request is invalid")
Internal = _problem(500, "internal", "The aggregator failed")

# Credentials
Unauthorized = _problem(401, "unauthorized", "A valid credential is needed")
DeviceRevoked = _problem(403, "device-revoked", "This device takes no longer part")
EnrolmentRefused = _problem(403, "enrolment-refused", "The device may not enrol")
AttestationFailed = _problem(403, "attestation-failed", "The device's attestation is not accepted")
AdminRequired = _problem(403, "admin-required", "This needs the admin credential")
AdminDisabled = _problem(403, "admin-disabled", "No admin credential is set up")
OtherBundle = _problem(409, "other-bundle", "The device has another model than this federation trains")
UnknownGroup = _problem(422, "unknown-group", "There is no such group")

# Tasks and updates
UnknownTask = _problem(404, "unknown-task", "There is no such task")
TaskExpired = _problem(410, "task-expired", "The task is over")
RoundClosed = _problem(410, "round-closed", "The round takes no more updates")
KeyReused = _problem(409, "idempotency-key-reused", "The key was used with other content")
KeyRequired = _problem(400, "idempotency-key-required", "An idempotency key is needed")
AlreadyUploaded = _problem(409, "already-uploaded", "The task has an update already")
OffsetMismatch = _problem(409, "offset-mismatch", "The part does not follow what is there")
BadUpdate = _problem(422, "malformed-update", "The update is not a valid update file")
WrongTensors = _problem(422, "wrong-tensors", "The update has other tensors than the task asks for")
NotFinite = _problem(422, "update-not-finite", "The update has values that are NaN or infinite")
NormTooLarge = _problem(422, "update-too-large", "The update's norm is beyond what can be a device's")
WrongTask = _problem(409, "update-of-another-task", "The update belongs to another task or round")
BadReport = _problem(422, "bad-report", "The reported numbers are invalid")
TooStale = _problem(410, "too-stale", "The update starts from a version that is too old")

#: All problems by code, for documentation and tests.
PROBLEMS: dict[str, type[Problem]] = {
    c.code: c
    for c in list(globals().values())
    if isinstance(c, type) and issubclass(c, Problem) and c is not Problem
}


def unauthorized(whose: str = "device") -> Problem:
    """The problem of a request without a valid credential of a device, or of an admin."""
    return Unauthorized(
        f"there is no valid {whose} credential with the request",
        mend="enrol, and send the credential as Authorization: Bearer ..."
        if whose == "device"
        else "send the admin token as Authorization: Bearer ...",
        headers={"WWW-Authenticate": "Bearer"},
    )


def encode(problem: Problem, instance: str | None = None) -> tuple[bytes, dict[str, str]]:
    """Body and headers of the answer."""
    content = json.dumps(problem.to_json(instance)).encode()
    return content, {"cache-control": "no-store"} | problem.headers
