from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from service.http.app import create_app
from service.http.problems import TABLE
from service.settings import Settings
from tests.fakes.signup import FakeService

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quart import Quart

UNDESCRIBED = {"/static/{name}", "/ops", "/ops/events", "/ops/session", "/ops/session/end"}  # for a browser


@pytest.fixture
def app() -> Quart:
    """Return the application on Trio."""
    return create_app(Settings(loop="trio"), FakeService())


async def described(app: Quart) -> dict[str, Any]:
    """Return the description as a client gets it."""
    document: dict[str, Any] = await (await app.test_client().get("/openapi.json")).get_json()
    return document


def operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every operation."""
    for calls in document["paths"].values():
        yield from calls.values()


def references(value: object) -> Iterator[str]:
    """Yield every $ref within a document."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


async def test_every_route_is_described(app: Quart) -> None:
    """The description has the routes that there are and no other."""
    rules = {rule.rule.replace("<", "{").replace(">", "}") for rule in app.url_map.iter_rules()}
    assert set((await described(app))["paths"]) == rules - UNDESCRIBED


async def test_every_reference_leads_somewhere(app: Quart) -> None:
    """Each $ref names a part of the same document."""
    document = await described(app)
    found = set(references(document))
    assert found
    for reference in found:
        part: Any = document
        for name in reference.removeprefix("#/").split("/"):
            part = part[name]
        assert part


async def test_every_problem_of_a_call_is_described_with_its_example(app: Quart) -> None:
    """Examples are answers as they are made; every code but that of wrong paths, methods and words appears."""
    seen: set[str] = set()
    for operation in operations(await described(app)):
        for status, answer in operation["responses"].items():
            for code, example in answer["content"].get("application/problem+json", {}).get("examples", {}).items():
                seen.add(code)
                assert example["value"]["error"] == code
                assert example["value"]["status"] == int(status)
                assert "retry_after" not in example["value"] or "Retry-After" in answer["headers"]
    assert seen == {problem.code for problem in TABLE.values()} - {"MethodNotAllowed"}


async def test_who_may_call_is_described(app: Quart) -> None:
    """Basic for accounts, Bearer for operators, nothing for the rest."""
    document = await described(app)
    security = {call["operationId"]: call["security"] for call in operations(document)}
    assert security["register"] == []
    assert security["activate"] == security["me"] == [{"account": []}]
    assert security["metrics"] == security["caught_mails"] == [{"operator": []}]
    assert document["components"]["securitySchemes"]["account"]["scheme"] == "basic"
    assert document["components"]["securitySchemes"]["operator"]["scheme"] == "bearer"


async def test_queries_are_described_as_they_are_read(app: Quart) -> None:
    """Each parameter has a description and a schema, and so has the refusal of a value that breaks it."""
    call = (await described(app))["paths"]["/api/v1/ops/mails"]["get"]
    parameters = {each["name"]: each for each in call["parameters"]}
    assert set(parameters) == {"state", "since", "limit"}
    assert all(each["in"] == "query" and each["description"] for each in parameters.values())
    assert parameters["state"]["schema"]["enum"] == ["queued", "sending", "accepted", "dead"]
    assert parameters["limit"]["schema"]["maximum"] == 1000
    assert "422" in call["responses"]


async def test_states_are_explained(app: Quart) -> None:
    """What polls a status address reads in the description what each state means."""
    schemas = (await described(app))["components"]["schemas"]
    for state in schemas["State"]["enum"]:
        assert state in schemas["StateView"]["properties"]["state"]["description"]


async def test_bodies_are_described_as_they_are_read(app: Quart) -> None:
    """A registration's fields, which of them are required, and that there are no others."""
    document = await described(app)
    schema = document["components"]["schemas"]["RegisterRequest"]
    assert set(schema["properties"]) == {"email", "password", "locale"}
    assert schema["required"] == ["email", "password"]
    assert schema["additionalProperties"] is False
    assert document["openapi"] == "3.1.0"
    success = document["paths"]["/api/v1/users/register"]["post"]["responses"]["201"]
    assert {"Location", "X-RateLimit-Remaining", "X-Request-ID"} <= set(success["headers"])
