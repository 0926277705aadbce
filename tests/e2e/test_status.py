from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pytest_bdd import parsers, scenarios, then, when

from tests.e2e.world import STATE_SECONDS
from tests.servers.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Story
    from tests.servers.smtp import SmtpServer

PUBLIC = {"state", "code_expires_in", "attempts_left", "resend_in"}

scenarios("features/status.feature")


@pytest.fixture
def mail_server_is_back(mail_server: SmtpServer) -> Iterator[None]:
    """Let no scenario leave the mail server away."""
    yield
    mail_server.refuse()
    mail_server.accept()


@when("they register while the mail server is away")
def register_without_mail(story: Story, mail_server: SmtpServer, mail_server_is_back: None) -> None:
    """Close the mail server's port first."""
    mail_server.refuse()
    assert story.person.register().outcome == "201"


@then("their state is queued or sending and no time runs")
def nothing_runs(story: Story) -> None:
    """Read the public view."""
    view = story.person.client.get(story.person.status_url).json()
    assert view["state"] in {"queued", "sending"}
    assert (view["code_expires_in"], view["attempts_left"]) == (None, 5)


@when("the mail server is back")
def mail_server_back(mail_server: SmtpServer) -> None:
    """Open its port again."""
    mail_server.accept()


@then(parsers.parse('their state becomes "{state}" and at most {seconds:d} seconds are left'))
def becomes_with_time(story: Story, state: str, seconds: int) -> None:
    """Poll as a page would."""
    becomes(story, state)
    view = story.person.client.get(story.person.status_url).json()
    assert 0 <= view["code_expires_in"] <= seconds


@then(parsers.parse('their state becomes "{state}"'))
def becomes(story: Story, state: str) -> None:
    """Poll as a page would."""
    wait_for(lambda: story.person.state() == state, f"the state is {state}", STATE_SECONDS)


@then(parsers.parse('their state becomes "{state}" with {attempts:d} attempts left'))
def becomes_with_attempts(story: Story, state: str, attempts: int) -> None:
    """Poll as a page would."""
    becomes(story, state)
    assert story.person.client.get(story.person.status_url).json()["attempts_left"] == attempts


@when("they wait until another code can be had")
def wait_for_resend(story: Story) -> None:
    """Watch resend_in go down to 0."""
    client, url = story.person.client, story.person.status_url
    wait_for(lambda: client.get(url).json()["resend_in"] == 0, "another code can be had")


@then("the owner's view and the public view agree, and only the owner's has the address")
def views_agree(story: Story) -> None:
    """Compare both, apart from the seconds that pass between them."""
    person = story.person
    public = person.client.get(person.status_url).json()
    own = person.client.activation(person.email, person.password).json()
    assert public.keys() == PUBLIC
    assert own.keys() == PUBLIC | {"email"}
    assert own["email"] == person.email
    assert public["state"] == own["state"] == "accepted"
    assert 30 <= own["code_expires_in"] <= public["code_expires_in"] <= 60


@when("they register while the mail server knows nobody of that name")
def register_unknown(story: Story, mail_server: SmtpServer) -> None:
    """Have the recipient refused for good."""
    mail_server.know_nobody(story.person.email)
    assert story.person.register().outcome == "201"


@when(parsers.parse("somebody opens their status address with {change}"))
def open_forged(story: Story, change: str) -> None:
    """Forge a token out of a real one."""
    before, _, token = story.person.status_url.rpartition("/")
    forged = {
        "its last character off": token[:-1],
        "a bit flipped in front": ("B" if token[0] == "A" else "A") + token[1:],
        "a bit flipped at the end": token[:-1] + ("B" if token[-1] == "A" else "A"),
        "padding": f"{token}=",
        "nothing but dashes": "-" * len(token),
        "a slash at the end": f"{token}/",
    }[change]
    assert story.person.client.get(story.person.status_url).status == 200
    story.answers.append(story.place.client().get(f"{before}/{forged}"))
