from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema_rs import Draft202012Validator

from actors.domain.mail import MailState
from actors.signup import KEY
from service.http.json_body import checked
from service.http.ops import ReplayRequest
from service.http.problems import TABLE, InvalidFields
from service.http.schemas import ActivateRequest
from tests.fakes.http_service import FakeService

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quart import Quart

UNDESCRIBED = {"/static/{name}", "/ops", "/ops/events", "/ops/session", "/ops/session/end"}  # for a browser


@pytest.fixture
def app() -> Quart:
    """Return the application on Trio."""
    return FakeService().app(loop="trio")


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
    assert parameters["state"]["schema"]["enum"] == [*MailState]
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


def fits(schema: dict[str, Any], value: object) -> bool:
    """Whether a value is what the schema describes."""
    return Draft202012Validator(schema).is_valid(value)


@pytest.mark.parametrize(
    "body",
    [
        {"code": "012345"},
        {"activation_code": "012345"},
        {"activation_code": " 012-345\u2009", "code": None},
        {},
        {"code": None},
        {"code": "012345", "activation_code": "012345"},
        {"code": "01234"},
        {"code": "0123456"},
        {"code": "01234x"},
        {"code": "\u0661\u0661\u0661\u0661\u0661\u0661"},
        {"code": "012345", "more": 1},
    ],
)
async def test_a_code_is_described_as_it_is_read(app: Quart, body: dict[str, Any]) -> None:
    """Exactly one of two names, with as many digits as the setting says, and whatever people type between them."""
    schema = (await described(app))["components"]["schemas"]["ActivateRequest"]
    try:
        checked(ActivateRequest, body).digits(6)
    except InvalidFields:
        assert not fits(schema, body)
    else:
        assert fits(schema, body)


@pytest.mark.parametrize(
    "body",
    [
        {"ids": []},
        {"ids": ["123e4567-e89b-42d3-a456-426614174000"], "dead": False},
        {"dead": True, "dry_run": True},
        {"dead": True, "ids": None, "since": "2h"},
        {},
        {"dead": False},
        {"ids": None},
        {"ids": [], "dead": True},
        {"since": "2h"},
    ],
)
async def test_a_replay_is_described_as_it_is_read(app: Quart, body: dict[str, Any]) -> None:
    """Either ids or the dead, never both and never neither."""
    schema = (await described(app))["components"]["schemas"]["ReplayRequest"]
    try:
        checked(ReplayRequest, body)
    except InvalidFields:
        assert not fits(schema, body)
    else:
        assert fits(schema, body)


@pytest.mark.parametrize("key", ["!", "~" * 64, "a-Key_1", "", "~" * 65, "two words", "\u00fc", "\x7f"])
async def test_the_idempotency_key_is_described_as_it_is_read(app: Quart, key: str) -> None:
    """The pattern in the description is the one that judges."""
    document = await described(app)
    [header] = document["paths"]["/api/v1/users/register"]["post"]["parameters"]
    assert header["name"] == "Idempotency-Key"
    assert fits(header["schema"], key) is (KEY.fullmatch(key) is not None)


async def test_no_described_text_has_control_characters(app: Quart) -> None:
    """Of all characters exactly those of the category Cc are outside the pattern."""
    schema = (await described(app))["components"]["schemas"]["RegisterRequest"]["properties"]["email"]
    for character in map(chr, range(0x2100)):
        assert fits(schema, character) is (unicodedata.category(character) != "Cc")
