from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from pytest_bdd import parsers, scenarios, then, when

from tests.e2e.world import wrong_code

if TYPE_CHECKING:
    from tests.e2e.client import Client
    from tests.e2e.conftest import Story

WRONG = "no one's password"

scenarios("features/limits.feature")


@pytest.fixture
def machine(story: Story) -> Client:
    """Give one client machine."""
    return story.place.client()


@when(parsers.parse("{number:d} people register from one machine"))
def register_many(story: Story, machine: Client, number: int) -> None:
    """Send as many forms."""
    people = [story.place.person() for _ in range(number)]
    story.answers.extend(machine.register(person.email, person.password) for person in people)


@then("all hear 201 and how many are left")
def all_created(story: Story) -> None:
    """Read the headers of each answer."""
    assert [answer.outcome for answer in story.answers] == ["201"] * 5
    for number, answer in enumerate(story.answers, start=1):
        assert f'"register";r={5 - number};' in (answer.header("RateLimit") or "")
        assert '"register";q=5;w=3600' in (answer.header("RateLimit-Policy") or "")
        assert answer.header("X-RateLimit-Remaining") is not None


@when("another person registers from there")
@when("the same person registers from another machine")
def register_one_more(story: Story, machine: Client) -> None:
    """Send one more form, from the machine that has sent the others unless that was refused before."""
    if story.answer.status == 429:
        person, client = story.person, story.place.client()
    else:
        story.people.append(story.place.person())
        person, client = story.person, machine
    story.answers.append(client.register(person.email, person.password))


@when("another person registers from there with a forwarded address")
def register_forwarded(story: Story, machine: Client) -> None:
    """Claim to be a proxy."""
    person = story.place.person()
    forwarded = {"X_Forwarded_For": "198.51.100.7", "Forwarded": "for=198.51.100.7"}
    story.answers.append(machine.register(person.email, person.password, **forwarded))


@then("its headers say that nothing is left for up to an hour")
def nothing_left(story: Story) -> None:
    """Compare the headers with each other."""
    answer = story.answer
    assert (answer.header("X-RateLimit-Limit"), answer.header("X-RateLimit-Remaining")) == ("5", "0")
    wait = int(answer.header("Retry-After") or 0)
    assert 3500 < wait <= 3600
    assert abs(int(answer.header("X-RateLimit-Reset") or 0) - (time.time() + wait)) < 5


@when(parsers.parse("{number:d} forms with a bad address come from one machine"))
def register_badly(story: Story, machine: Client, number: int) -> None:
    """Send as many bad forms."""
    story.answers.extend(machine.register("no address", "correct horse battery") for _ in range(number))


@then(parsers.re(r"all hear (?P<outcome>\d{3} \w+)$"))
def all_hear(story: Story, outcome: str) -> None:
    """Compare every answer so far."""
    assert {answer.outcome for answer in story.answers} == {outcome}


@when(parsers.parse("they type a wrong code from {number:d} machines in turn"))
def wrong_codes(story: Story, number: int) -> None:
    """Try to get around the limit by coming from elsewhere."""
    person = story.person
    wrong = wrong_code(person.mail().code)
    for _ in range(number):
        story.answers.append(story.place.client().activate(person.email, person.password, wrong))


@when(parsers.parse("a stranger tries {number:d} wrong passwords"))
def guess(story: Story, machine: Client, number: int) -> None:
    """Guess."""
    story.answers.extend(machine.me(story.person.email, WRONG) for _ in range(number))


@when("the stranger tries the right password")
def right_guess(story: Story, machine: Client) -> None:
    """Guess right, too late."""
    story.answers.append(machine.me(story.person.email, story.person.password))


@when("a stranger tries a wrong password at each call with a password")
def guess_everywhere(story: Story, machine: Client) -> None:
    """Try to get around the limit by asking elsewhere."""
    email = story.person.email
    story.answers += [
        machine.me(email, WRONG),
        machine.activate(email, WRONG, "123456"),
        machine.resend(email, WRONG),
        machine.activation(email, WRONG),
    ]
