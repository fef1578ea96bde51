"""The OpenAPI document against a running server: schemathesis makes requests, valid and invalid, and checks answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2
import hypothesis
import pytest
import schemathesis
from schemathesis.specs.openapi import checks

from pfl_mobile.bundle import Bundle
from pfl_mobile.protocol.bodies import SAFETENSORS
from pfl_server.app import openapi_document
from pfl_server.services import Services
from pfl_server.settings import ServerSettings
from tests.server.conftest import ADMIN_TOKEN, GENEROUS, config_of, serving

#: What follows the schema is refused all the same where it names what is not there: a group, a metric, another bundle;
#: and an update is a file whose content follows from its task.
NEEDS_MORE = {
    ("POST", "/v1/devices"),
    ("PUT", "/v1/tasks/{task}/update"),
    ("POST", "/v1/tasks/{task}/evaluation"),
    ("POST", "/v1/admin/tokens"),
}


def _unreasonable(case: schemathesis.Case) -> list[schemathesis.CheckFunction]:
    """The checks that say nothing about this request."""
    found: list[schemathesis.CheckFunction] = []
    if (case.method, case.path) in NEEDS_MORE:
        found.append(checks.positive_data_acceptance)
    if set(case.query) - {parameter.name for parameter in case.operation.query}:
        found.append(checks.negative_data_rejection)  # parameters that nobody knows are ignored, not refused
    return found


@schemathesis.serializer(SAFETENSORS)
def _binary(_context: object, value: object) -> bytes:
    data = getattr(value, "data", value)
    return data if isinstance(data, bytes) else str(data).encode()


schema = schemathesis.openapi.from_dict(openapi_document())


@pytest.fixture(scope="module")
def url(federated_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = ServerSettings(
        bundle=federated_folder, data=tmp_path_factory.mktemp("openapi"), enrolment="open", limits=GENEROUS
    )
    with Bundle.open(federated_folder) as bundle:
        services = Services.open(settings, bundle, config_of(), admin_token=ADMIN_TOKEN)
        with serving(services) as found:
            yield found


def _credential(url: str, case: schemathesis.Case) -> str:
    """The admin's where it is needed, else that of a new device, as some cases make a device leave."""
    if "/admin/" in case.path or case.path == "/metrics":
        return ADMIN_TOKEN
    with httpx2.Client(
        base_url=url, verify=False, timeout=60
    ) as client:  # plain HTTP: no authorities need to be read
        bundle = client.get("/v1/federation").json()["bundle"]
        return str(client.post("/v1/devices", json={"bundle": bundle}).json()["credential"])


@pytest.mark.slow
@schema.parametrize()
@hypothesis.settings(
    max_examples=6, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
def test_every_answer_is_one_that_the_document_names(case: schemathesis.Case, url: str) -> None:
    headers = {"Authorization": f"Bearer {_credential(url, case)}"}
    response = case.call(base_url=url, headers=headers, timeout=60)
    excluded = _unreasonable(case)
    if response.status_code == 413:  # a refusal like others, which the check does not know
        excluded.append(checks.negative_data_rejection)
    assert response.headers["pfl-protocol"] == ["1"]
    case.validate_response(response, excluded_checks=excluded, headers=headers)


def test_the_running_server_has_this_document(url: str) -> None:
    assert httpx2.get(f"{url}/openapi.json", timeout=60).json() == openapi_document()
