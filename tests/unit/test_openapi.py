from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema_rs import Draft202012Validator
from quart import Quart

from actors.signup import KEY
from service.http.json_body import checked
from service.http.problems import TABLE, InvalidFields
from service.http.schemas import ActivateRequest
from tests.fakes.http_service import FakeService

JsonDocument = dict[str, Any]

UNDESCRIBED = {"/static/{name}", "/ops"}  # for a browser
ADVICE = {problem.code: problem.advice for problem in TABLE.values()}


@pytest.fixture
def app() -> Quart:
    """Return the application on Trio."""
    return FakeService().app(loop="trio")


@pytest.fixture
async def document(app: Quart) -> JsonDocument:
    """Return the description as a client gets it."""
    described: JsonDocument = await (await app.test_client().get("/openapi.json")).get_json()
    return described


def operations(document: JsonDocument) -> Iterator[dict[str, Any]]:
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


async def test_every_route_is_described(app: Quart, document: JsonDocument) -> None:
    """The description has the routes that there are and no other."""
    rules = {rule.rule.replace("<", "{").replace(">", "}") for rule in app.url_map.iter_rules()}
    assert set(document["paths"]) == rules - UNDESCRIBED


async def test_every_reference_leads_somewhere(document: JsonDocument) -> None:
    """Each $ref names a part of the same document."""
    found = set(references(document))
    assert found
    for reference in found:
        part: Any = document
        for name in reference.removeprefix("#/").split("/"):
            part = part[name]
        assert part


async def test_every_problem_of_a_call_is_described_with_its_example(document: JsonDocument) -> None:
    """Examples have what every answer has; each code but that of wrong methods appears, and who must wait is told."""
    seen: set[str] = set()
    for operation in operations(document):
        for status, answer in operation["responses"].items():
            for code, example in answer["content"].get("application/problem+json", {}).get("examples", {}).items():
                seen.add(code)
                assert (example["value"]["error"], example["value"]["status"]) == (code, int(status))
                assert "`retry_after`" not in ADVICE[code] or "Retry-After" in answer["headers"]
    assert seen == {problem.code for problem in TABLE.values()} - {"MethodNotAllowed"}


async def test_who_may_call_is_described(document: JsonDocument) -> None:
    """Basic for accounts, Bearer for operators, nothing for the rest."""
    security = {call["operationId"]: call["security"] for call in operations(document)}
    assert security["register"] == []
    assert security["activate"] == security["me"] == [{"account": []}]
    assert security["metrics"] == security["caught_mails"] == [{"operator": []}]
    schemes = document["components"]["securitySchemes"]
    assert (schemes["account"]["scheme"], schemes["operator"]["scheme"]) == ("basic", "bearer")


async def test_states_are_explained(document: JsonDocument) -> None:
    """What polls a status address reads in the description what each state means."""
    schemas = document["components"]["schemas"]
    for state in schemas["State"]["enum"]:
        assert state in schemas["StateView"]["properties"]["state"]["description"]


async def test_a_registration_is_described_as_it_is_read(document: JsonDocument) -> None:
    """Its fields, which are required, that there are no others, and that exactly the category Cc is refused."""
    schema = document["components"]["schemas"]["RegisterRequest"]
    assert set(schema["properties"]) == {"email", "password", "locale"}
    assert (schema["required"], schema["additionalProperties"]) == (["email", "password"], False)
    for character in map(chr, range(0x2100)):
        assert fits(schema["properties"]["email"], character) is (unicodedata.category(character) != "Cc")
    success = document["paths"]["/api/v1/users/register"]["post"]["responses"]["201"]
    assert {"Location", "X-RateLimit-Remaining", "X-Request-ID"} <= set(success["headers"])


def fits(schema: dict[str, Any], value: object) -> bool:
    """Whether a value is what the schema describes."""
    return Draft202012Validator(schema).is_valid(value)


CODES = ["012345", " 012-345\u2009", "012", "01234567890", "01234x", "\u0661" * 6]


@pytest.mark.parametrize(
    "body",
    [
        *[{"code": code} for code in CODES],
        *[{"activation_code": "012345", "code": code} for code in (None, "012345")],
        *({"activation_code": "012345"}, {}, {"code": None}, {"code": "012345", "more": 1}),
    ],
)
async def test_a_code_is_described_as_it_is_read(document: JsonDocument, body: dict[str, Any]) -> None:
    """One code under one of two names, with as many digits as a code can have."""
    try:
        good = bool(checked(ActivateRequest, body).digits(6))
    except InvalidFields:
        good = False
    assert fits(document["components"]["schemas"]["ActivateRequest"], body) is good


@pytest.mark.parametrize("key", ["!", "~" * 64, "a-Key_1", "", "~" * 65, "two words", "\u00fc", "\x7f"])
async def test_the_idempotency_key_is_described_as_it_is_read(document: JsonDocument, key: str) -> None:
    """The pattern in the description is the one that judges."""
    [header] = document["paths"]["/api/v1/users/register"]["post"]["parameters"]
    assert header["name"] == "Idempotency-Key"
    assert fits(header["schema"], key) is (KEY.fullmatch(key) is not None)
