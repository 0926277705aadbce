from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pytest_bdd import parsers, scenarios, then, when

from tests.e2e.client import USERS, basic
from tests.e2e.world import wrong_code
from tests.servers.waiting import wait_for

if TYPE_CHECKING:
    from tests.e2e.client import Answer
    from tests.e2e.conftest import Story

SPACING = {"a blank": " ", "a tab": "\t", "a hyphen": "-", "a no-break space": "\u00a0"}
OWN_HEADERS = {"date", "x-request-id"}

scenarios("features/activating.feature")


@when(parsers.parse("they type a wrong code {times:d} times"))
def type_wrong(story: Story, times: int) -> None:
    """Guess."""
    wrong = wrong_code(story.person.code())
    story.answers.extend(story.person.activate(wrong) for _ in range(times))


@then(parsers.parse("they hear that {numbers} attempts are left"))
def attempts_left(story: Story, numbers: str) -> None:
    """Every answer counts down."""
    assert {answer.outcome for answer in story.answers} == {"400 InvalidActivationCode"}
    assert ", ".join(str(answer.json()["attempts_left"]) for answer in story.answers) == numbers
    assert all("superseded" not in answer.json() for answer in story.answers)


@when(parsers.parse('they type the code with "{spacing}" around and inside'))
def type_spaced(story: Story, spacing: str) -> None:
    """As pasted from a mail, or read aloud."""
    code, space = story.person.code(), SPACING[spacing]
    story.answers.append(story.person.activate(space + code[:3] + space + code[3:6] + space * 2 + code[6:] + space))


@when(parsers.re(r'they type "(?P<text>.*)" for a code$'))
def type_text(story: Story, text: str) -> None:
    """Send whatever it is."""
    story.person.code()
    story.answers.append(story.person.activate(text))


@when(parsers.re(r"they send (?P<body>\{.*\}) for a code$"))
def send_json(story: Story, body: str) -> None:
    """Send the JSON as it stands there."""
    person = story.person
    person.code()
    content = json.dumps(json.loads(body)).encode()
    story.answers.append(
        person.client.post(f"{USERS}/activate", content, Authorization=basic(person.email, person.password))
    )


@when(parsers.parse('they send their code under the name "{name}"'))
def send_under_name(story: Story, name: str) -> None:
    """Use the other of the two names."""
    person = story.person
    body = {name: person.code()}
    authorization = basic(person.email, person.password)
    story.answers.append(person.client.post(f"{USERS}/activate", body, Authorization=authorization))


@then(parsers.parse('it names the field "{name}"'))
def names_field(story: Story, name: str) -> None:
    """So that a form can show it there."""
    (error,) = story.answer.json()["errors"]
    assert error.keys() == {"field", "message"}
    assert error["field"] == name


@then("no attempt is used")
def nothing_used(story: Story) -> None:
    """All five are left."""
    person = story.person
    assert person.client.activation(person.email, person.password).json()["attempts_left"] == 5


@when("both activate with a password that is not theirs")
def both_try(story: Story) -> None:
    """One address is known, one is not."""
    story.people[0].code()
    client = story.place.client()
    story.answers.extend(client.activate(person.email, "no one's password", "1234567890") for person in story.people)


@then("both hear 401 InvalidCredentials in the same bytes and headers")
def same_answers(story: Story) -> None:
    """Only what names the answer itself may differ."""
    known, unknown = story.answers
    assert known.outcome == unknown.outcome == "401 InvalidCredentials"
    assert known.header("WWW-Authenticate") == 'Basic realm="vestibule", charset="UTF-8"'
    assert known.body == unknown.body
    assert _headers(known) == _headers(unknown)


def _headers(answer: Answer) -> list[tuple[str, str]]:
    return [(name, value) for name, value in answer.headers if name.lower() not in OWN_HEADERS]


@when("their code has expired")
def code_expires(story: Story) -> None:
    """Its four seconds are over."""
    story.person.code()
    wait_for(lambda: story.person.state() == "expired", "the code has expired")


@then("it says where to get a new one")
def says_where(story: Story) -> None:
    """Expect the path that answers POST."""
    assert story.answer.json()["resend_url"] == f"{USERS}/resend"


@when("a stranger tries the same with a wrong password")
def stranger(story: Story) -> None:
    """Try to learn the person's state."""
    person = story.person
    story.answers.append(story.place.client().activate(person.email, "no one's password", person.mail().code))
