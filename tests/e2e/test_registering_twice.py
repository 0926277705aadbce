from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_bdd import scenarios, then, when

if TYPE_CHECKING:
    from tests.e2e.conftest import Story

scenarios("features/registering_twice.feature")


@when("they register again in capitals")
def register_in_capitals(story: Story) -> None:
    """Addresses compare without case."""
    person = story.person
    story.answers.append(person.client.register(person.email.upper(), person.password))


@then("their first password is refused")
def first_password(story: Story) -> None:
    """Nobody gets in with it, with or without a code."""
    person = story.person
    mails = story.place.post.to(person.email)
    assert person.client.me(person.email, story.passwords[0]).outcome == "401 InvalidCredentials"
    for mail in mails:
        answer = person.client.activate(person.email, story.passwords[0], mail.code)
        assert answer.outcome == "401 InvalidCredentials"


@then("the first status address is unknown")
def first_status_address(story: Story) -> None:
    """Ask at the other registration's."""
    first, second = story.people
    assert first.status_url != second.status_url
    assert first.client.get(first.status_url).outcome == "404 NotFound"
