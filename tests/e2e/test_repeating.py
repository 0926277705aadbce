from __future__ import annotations

from secrets import token_hex
from typing import TYPE_CHECKING

from pytest_bdd import parsers, scenarios, then, when

from tests.e2e.at_once import at_once

if TYPE_CHECKING:
    from tests.e2e.conftest import Story

scenarios("features/repeating.feature")


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
