from __future__ import annotations

import threading
from secrets import token_hex
from typing import TYPE_CHECKING

from pytest_bdd import parsers, scenarios, then, when

from tests.e2e.at_once import at_once

if TYPE_CHECKING:
    from tests.e2e.conftest import Story

scenarios("features/registering_twice.feature", "features/repeating.feature", "features/resending.feature")


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


@when(parsers.parse("they register {times:d} times with the same key"))
def repeat(story: Story, times: int) -> None:
    """Send the same form again and again."""
    key = token_hex(8)
    story.answers.extend(story.person.register(Idempotency_Key=key) for _ in range(times))


@when(parsers.parse("they register {times:d} times at once with the same key"))
def repeat_at_once(story: Story, times: int) -> None:
    """Send the same form from threads that start together."""
    key = token_hex(8)
    story.answers.extend(at_once([lambda: story.person.register(Idempotency_Key=key)] * times))


@then("all answers are the same 201")
def same_answers(story: Story) -> None:
    """Compare the bodies."""
    assert {answer.outcome for answer in story.answers} == {"201"}
    assert len({answer.body for answer in story.answers}) == 1


@when("they register with a key and again with another password")
def reuse(story: Story) -> None:
    """Send another body under the same key."""
    key = token_hex(8)
    people = [story.person, story.person.another_password()]
    story.answers.extend(person.register(Idempotency_Key=key) for person in people)


@when("two people register with the same key")
def share(story: Story) -> None:
    """Use one key for two addresses."""
    key = token_hex(8)
    story.answers.extend(story.place.person().register(Idempotency_Key=key) for _ in range(2))


@when("they register with a key and a weak password, and again with a good one")
def mend(story: Story) -> None:
    """Mend the form and keep the key."""
    person, key = story.person, token_hex(8)
    story.answers.append(person.client.register(person.email, "password", Idempotency_Key=key))
    story.answers.append(person.register(Idempotency_Key=key))


@when(parsers.re(r'they register with the key "(?P<key>.*)"$'))
def odd_key(story: Story, key: str) -> None:
    """Send what is no key."""
    story.answers.append(story.person.register(Idempotency_Key=key))


def wait_as_told(story: Story) -> None:
    """Wait as long as the answer says, and no longer: it promises that this is enough."""
    told = story.answer.json()
    threading.Event().wait(told.get("retry_after", told.get("resend_in", 0)))


@then("it says when the next one can be had")
def says_when_next(story: Story) -> None:
    """Compare the members with the promised ones; there is no cool-down and no budget here."""
    view = story.answer.json()
    assert view.keys() == {"email", "resend_in", "codes_left_today", "message"}
    assert (view["email"], view["resend_in"], view["codes_left_today"]) == (story.person.email, 0, None)


@when("they activate with the code of their superseded mail")
def activate_superseded(story: Story) -> None:
    """Type the first code when the second mail has been accepted."""
    person = story.person
    person.code(2)
    story.answers.append(person.activate(person.mail(1).code))


@then("it says that the code was superseded, which cost no attempt")
def superseded(story: Story) -> None:
    """Look for the word, and count the attempts that are left."""
    view = story.answer.json()
    assert (view["superseded"], view["attempts_left"]) == (True, 5)
    assert story.person.client.activation(story.person.email, story.person.password).json()["attempts_left"] == 5


@when("a stranger asks for a code with a wrong password")
def stranger_resends(story: Story) -> None:
    """Try to have a mail sent to somebody else."""
    story.answers.append(story.place.client().resend(story.person.email, "no one's password"))


@when("they wait as long as that")
def wait(story: Story) -> None:
    """Trust the answer."""
    wait_as_told(story)


@when(parsers.parse("they ask for another code as soon as they may, {times:d} times"))
def resend_often(story: Story, times: int) -> None:
    """Ask, wait as told, ask again."""
    story.answers.append(story.person.resend())
    for _ in range(times):
        wait_as_told(story)
        story.answers.append(story.person.resend())
