from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from pytest_bdd import parsers, scenarios, then, when

if TYPE_CHECKING:
    from tests.e2e.conftest import Story

scenarios("features/resending.feature")


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
