"""The loops that everything runs on, and the steps that several features share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from pytest_bdd import given, parsers, step, then, when

from tests.e2e.instance import running
from tests.e2e.post import CaughtMails, Post, ServerMails
from tests.e2e.world import ROOMY, STRICT, Person, Place
from tests.servers.smtp import SmtpServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.client import Answer

LAST = "test_canary.py"  # looks at what all others have left behind


def pytest_configure(config: pytest.Config) -> None:
    """Name the features' tags."""
    config.addinivalue_line("markers", "strict: the scenario plays on the service with everyday limits")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the search for secrets behind whatever could have leaked them."""
    items.sort(key=lambda item: item.path.name == LAST)


@pytest.fixture(scope="session", params=["uvloop", "trio"])
def loop(request: pytest.FixtureRequest) -> str:
    """Give each loop in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def mail_server() -> Iterator[SmtpServer]:
    """Run the mail server of the strict service."""
    with SmtpServer() as server:
        yield server


@pytest.fixture(scope="session")
def roomy(loop: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Give the service without limits, whose mails go to the built-in catcher."""
    with running(tmp_path_factory.mktemp("roomy"), loop, ROOMY) as instance:
        yield Place(instance, Post(CaughtMails(instance.data_dir / "mails"), instance.ledger))


@pytest.fixture(scope="session")
def strict(loop: str, tmp_path_factory: pytest.TempPathFactory, mail_server: SmtpServer) -> Iterator[Place]:
    """Give the service with everyday limits, an operators' token, a mail server, and codes that live four seconds."""
    with running(tmp_path_factory.mktemp("strict"), loop, STRICT | {"MAIL_URL": mail_server.url}) as instance:
        yield Place(instance, Post(ServerMails(mail_server), instance.ledger))


@dataclass
class Story:
    """A scenario's people and its latest answer."""

    place: Place
    people: list[Person] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    passwords: list[str] = field(default_factory=list)

    @property
    def person(self) -> Person:
        """The person it is about."""
        return self.people[-1]

    @property
    def answer(self) -> Answer:
        """What the person has just heard."""
        return self.answers[-1]


@pytest.fixture(autouse=True)
def story(loop: str, request: pytest.FixtureRequest) -> Story:
    """Begin a scenario, on the strict service if a tag says so; each starts when it is needed first."""
    return Story(request.getfixturevalue("strict" if request.node.get_closest_marker("strict") else "roomy"))


@given("a new person")
def new_person(story: Story) -> None:
    """Nobody has heard of them."""
    story.people.append(story.place.person())


@given("a person who has registered")
def registered_person(story: Story) -> None:
    """Their code is on its way."""
    story.people.append(story.place.person().registered())


@given("a person with an active account")
def active_person(story: Story) -> None:
    """Nothing is left for them to do."""
    person = story.place.person().registered()
    assert person.activate(person.code()).status == 200
    story.people.append(person)


@given("a person whose code is used up")
def exhausted_person(story: Story) -> None:
    """They have typed five wrong codes."""
    story.people.append(story.place.person().exhausted())


@when("they register")
@when("they register again")
def register(story: Story) -> None:
    """Send the form."""
    story.answers.append(story.person.register())


@when("they register again with a new password")
def register_anew(story: Story) -> None:
    """Send the same address with another password; the person goes on with the new one."""
    story.passwords.append(story.person.password)
    story.people.append(story.person.another_password())
    story.answers.append(story.person.register())


@step("their mail has arrived")
def mail_has_arrived(story: Story) -> None:
    """Wait until it is in the mailbox and the service knows."""
    story.person.code()


@when("they activate with the code of their mail")
@when("they activate with the code of their first mail")
def activate(story: Story) -> None:
    """Redeem the first code."""
    story.answers.append(story.person.activate(story.person.code()))


@when("they activate with the code of their second mail")
def activate_second(story: Story) -> None:
    """Redeem the second code."""
    story.answers.append(story.person.activate(story.person.code(2)))


@when("they ask for another code")
def resend(story: Story) -> None:
    """Ask for a resend."""
    story.answers.append(story.person.resend())


@when("they read their account")
def read_account(story: Story) -> None:
    """Ask who they are."""
    story.answers.append(story.person.me())


@then(parsers.re(r"the answer is (?P<outcome>\d{3}( \w+)?)$"))
def answer_is(story: Story, outcome: str) -> None:
    """Compare status and code."""
    assert story.answer.outcome == outcome, story.answer.body


@then(parsers.re(r"they hear (?P<outcomes>\d{3}.*)$"))
def outcomes_are(story: Story, outcomes: str) -> None:
    """Compare the latest answers, in order."""
    expected = outcomes.split(", ")
    assert [answer.outcome for answer in story.answers[-len(expected) :]] == expected


@then("it says when to try again")
def says_when(story: Story) -> None:
    """Find the same number of seconds in the header and in the body."""
    assert int(story.answer.header("Retry-After") or 0) == story.answer.json()["retry_after"]


@then("their account is active")
def account_is_active(story: Story) -> None:
    """Ask it."""
    profile = story.person.me().json()
    assert profile["is_activated"]
    assert profile["activated_at"]


@then("their account waits for its code")
def account_waits(story: Story) -> None:
    """Read it before it is active."""
    profile = story.person.me().json()
    assert (profile["is_activated"], profile["activated_at"]) == (False, None)


@then(parsers.parse("they have received {number:d} mail"))
@then(parsers.parse("they have received {number:d} mails"))
def number_of_mails(story: Story, number: int) -> None:
    """Count them, once as many as that have arrived."""
    story.person.mail(number)
    assert len(story.place.post.to(story.person.email)) == number
