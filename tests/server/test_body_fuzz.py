"""Bodies that the aggregator did not expect, at every address that takes one: a problem, and never a 500."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from tests.fuzz.mutate import WHOLE, json_text, mutate_json

if TYPE_CHECKING:
    from tests.server.conftest import Server


BASE: dict[str, Any] = {
    "bundle": {"name": "a", "version": "1", "fingerprint": "0" * 64}, "token": "t", "group": "", "examples": 1,
    "facts": {"engine": "x", "idle": True, "free_bytes": 1}, "reason": "privacy", "adopted": True,
    "global": {"loss": {"sum": 1.0, "weight": 1.0}}, "personalized": {"loss": {"sum": 1.0, "weight": 1.0}},
    "uses": 1, "note": "n", "version": 1, "round": 1,
}  # fmt: skip


def _addresses(server: Server) -> list[tuple[str, str]]:
    """Method and path of all operations that take a body, as the OpenAPI document has them."""
    paths = server.client.get("/openapi.json").json()["paths"]
    return [
        (method.upper(), path)
        for path, operations in paths.items()
        for method, operation in operations.items()
        if "requestBody" in operation
    ]


def test_every_address_refuses_what_is_no_body_of_its_own(server: Server) -> None:
    rng = random.Random(3)
    headers = server.enrol() | {"Content-Type": "application/json"}
    addresses = _addresses(server)
    assert len(addresses) > 3
    for method, path in addresses:
        place = path.replace("{", "").replace("}", "")
        bodies = [*WHOLE.values(), *(json_text(mutate_json(BASE, rng)) for _ in range(30))]
        bodies += [
            text.encode(code) for text in ('{"bundle": {}}',) for code in ("utf-8-sig", "utf-16", "utf-32")
        ]
        for body in bodies:
            for extra in ({}, server.admin):
                answer = server.client.request(method, place, content=body, headers=headers | extra)
                assert answer.status_code < 500, (method, place, body[:200], answer.text[:500])
                answer.json()
