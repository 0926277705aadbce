"""ENUMERATION=strict with real mails: strangers see states move, and the owner's mailbox tells the truth."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.e2e.instance import running
from tests.e2e.post import CaughtLetters, Post
from tests.e2e.world import ROOMY, STATE_SECONDS, Person, Place
from tests.faults.under_test import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

STRICT = {**ROOMY, "ENUMERATION": "strict", "CODE_TTL_SECONDS": "2"}
CODE = re.compile(r"^\d{10}$", re.MULTILINE)
NO_CODE = "0000000000"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Run a strict service whose codes live two seconds."""
    with running(tmp_path_factory.mktemp("enumeration"), "uvloop", STRICT) as instance:
        yield Place(instance, Post(CaughtLetters(instance.data_dir / "mails"), instance.ledger))


def received(person: Person, count: int) -> list[str | None]:
    """Wait for so many mails to the person's address, and return their codes; None is a mail without one."""
    letterbox = CaughtLetters(person.place.instance.data_dir / "mails")

    def mails() -> list[str]:
        return [letter.text for letter in letterbox.letters() if letter.to == person.email]

    wait_for(lambda: len(mails()) >= count, f"{count} mails have arrived", STATE_SECONDS)
    found = [CODE.search(text) for text in mails()]
    assert len(found) == count
    return [match.group() if match else None for match in found]


def reach(person: Person, wanted: str) -> None:
    """Wait until the person's registration is in the state, as who has no status address sees it."""

    def there() -> bool:
        return bool(person.client.activation(person.email, person.password).json()["state"] == wanted)

    wait_for(there, f"a registration becomes {wanted}", STATE_SECONDS)


def registered(person: Person) -> Person:
    """Register, which always succeeds."""
    assert person.register().outcome == "202"
    return person


def test_the_owner_gets_one_notice_and_strangers_get_nothing(place: Place) -> None:
    """Two registrations of an active address become accepted and expire, twice; one mail without a code was sent."""
    owner = registered(place.person())
    (code,) = received(owner, 1)
    assert owner.activate(code).outcome == "200"
    strangers = [registered(owner.another_password()) for _ in range(2)]
    for stranger in strangers:
        reach(stranger, "expired")
        assert stranger.activate(NO_CODE).outcome == "410 ActivationCodeExpired"
        assert stranger.resend().outcome == "202"
        reach(stranger, "expired")
    assert received(owner, 2) == [code, None]
    assert owner.me().json()["is_activated"] is True


def test_an_owner_whom_a_stranger_forestalled_gets_in(place: Place) -> None:
    """The owner's registration waits beside the stranger's, and has the address once the other's code is dead."""
    stranger = registered(place.person())
    owner = registered(stranger.another_password())
    reach(stranger, "expired")
    assert owner.resend().outcome == "202"
    first, second = [code for code in received(owner, 3) if code is not None]
    assert owner.activate(second).outcome == "200"
    assert stranger.me().json()["is_activated"] is False
    assert stranger.activate(first).outcome == "410 ActivationCodeExpired"
