"""After everything else: no code, password or Authorization value is in a log or a store, and no address in a log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
import redis

from service.embedded.servers import resolve
from service.settings import load
from tests.e2e.client import USERS
from tests.e2e.ledger import Ledger
from tests.e2e.stores import found_in
from tests.e2e.world import wrong_code

if TYPE_CHECKING:
    from tests.e2e.world import Place


def visit_everything(place: Place) -> None:
    """Use every call, well and badly, so that the search means something when nothing else has run."""
    person = place.person().registered()
    code = person.mail().code
    person.activate(wrong_code(code))
    person.activate(code + "x")
    person.client.activate(person.email, "no one's password", code)
    person.client.post(f"{USERS}/register", {"email": person.email, "password": person.password, "extra": code})
    person.client.post(f"{USERS}/register", f'{{"email": "{person.email}", "password": "{person.password}"'.encode())
    person.client.get(f"{USERS}/activation/{code}?code={code}&email={person.email}")
    person.client.get(f"/{person.email}/{person.password.replace(' ', '-')}/{code}")
    person.resend()
    assert person.activate(person.mail().code).status in {200, 400, 410}
    person.me()


@pytest.fixture(params=["roomy", "strict"])
def place(loop: str, request: pytest.FixtureRequest) -> Place:
    """Give each of the instances."""
    there: Place = request.getfixturevalue(request.param)
    return there


def test_secrets_stay_secret(place: Place) -> None:
    """Nothing that was typed, mailed or sent as a header is found anywhere."""
    visit_everything(place)
    ledger = place.instance.ledger
    assert ledger.codes
    assert ledger.passwords
    assert ledger.authorizations
    assert ledger.addresses
    assert found_in(place.instance, ledger) == []


def test_the_search_finds_what_is_there(place: Place) -> None:
    """The same search finds planted secrets in a log, a table, Redis and its file: it would have found a leak."""
    instance = place.instance
    ledger = Ledger({"canary password"}, {"Y2FuYXJ5OnBhc3N3b3Jk"}, {"4815162342"}, {"canary@example.test"})
    servers = resolve(load({f"VESTIBULE_{name}": value for name, value in instance.settings.items()}))
    planted = instance.data_dir / "logs" / "canary.log"
    planted.write_text("GET /?code=4815162342 Canary@Example.Test\n", encoding="utf-8")
    with (
        psycopg.connect(servers.database_url, autocommit=True) as connection,
        redis.Redis.from_url(servers.redis_url) as client,
    ):
        try:
            connection.execute("CREATE TABLE canary AS SELECT 'canary password' AS leak")
            client.hset("canary", "leak", "Basic Y2FuYXJ5OnBhc3N3b3Jk")
            found = "\n".join(found_in(instance, ledger))
        finally:
            planted.unlink()
            client.delete("canary")
            connection.execute("DROP TABLE canary")
    assert "the log canary.log holds a code" in found
    assert "the log canary.log holds an address" in found
    assert "the table canary holds a password" in found
    assert "Redis' hash canary holds a Authorization" in found
    assert "Redis' file " in found
