from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

from pytest_bdd import given, parsers, scenarios, then, when

if TYPE_CHECKING:
    from tests.e2e.conftest import Story
    from tests.servers.smtp import SmtpServer

scenarios("features/signing_up.feature")


@given("a mail server that takes the next mail but cannot say so")
def server_hangs_up(mail_server: SmtpServer) -> None:
    """Break the connection after the mail and before its answer."""
    mail_server.hang_up(at="DATA")


@when(parsers.re(r'they register with the language "(?P<chosen>.*)" in a browser that speaks "(?P<browser>.*)"$'))
def register_in_a_language(story: Story, chosen: str, browser: str) -> None:
    """Send the form with a locale, with Accept-Language, or with both."""
    headers = {"Accept_Language": browser} if browser else {}
    story.answers.append(story.person.register(locale=chosen or None, **headers))
    assert story.answer.outcome == "201"


@then("it shows the new account and nothing secret")
def shows_account(story: Story) -> None:
    """Compare the members with the promised ones."""
    view = story.answer.json()
    assert view.keys() == {"id", "email", "is_activated", "created_at", "message", "status_url"}
    assert UUID(view["id"])
    assert (view["email"], view["is_activated"]) == (story.person.email, False)
    assert abs((datetime.now(UTC) - datetime.fromisoformat(view["created_at"])).total_seconds()) < 60
    assert view["status_url"].startswith("/api/v1/users/activation/")
    assert story.answer.header("Cache-Control") == "no-store"
    assert story.person.password not in story.answer.body.decode()


@then("it says since when the account is active")
def shows_activation(story: Story) -> None:
    """Compare the members with the promised ones, and the time with the account's."""
    view = story.answer.json()
    assert view.keys() == {"email", "is_activated", "activated_at", "message"}
    assert (view["email"], view["is_activated"]) == (story.person.email, True)
    assert story.person.me().json()["activated_at"] == view["activated_at"]


@then("the code stands alone on a line of its text")
def code_alone(story: Story) -> None:
    """Find it once in all of the text, in the one line of digits."""
    mail = story.person.mail()
    assert len(mail.code) == 10
    assert mail.text.count(mail.code) == 1


@then("the code is not in its subject")
def not_in_subject(story: Story) -> None:
    """Keep it off locked screens, which show subjects."""
    mail = story.person.mail()
    assert mail.code not in str(mail.message["Subject"])


@then("it says that a machine has sent it")
def auto_submitted(story: Story) -> None:
    """So that no machine answers it (RFC 3834)."""
    assert story.person.mail().message["Auto-Submitted"] == "auto-generated"


@then("it has an id of its own")
def has_id(story: Story) -> None:
    """Compare its Message-ID with another person's."""
    others = [mail.message["Message-ID"] for mail in [story.place.person().registered().mail()]]
    ids = story.person.mail().message.get_all("Message-ID")
    assert ids is not None
    assert len(ids) == 1
    assert ids[0] not in others


@then(parsers.parse('their mail greets them with "{greeting}"'))
def greets(story: Story, greeting: str) -> None:
    """Read its beginning."""
    assert story.person.mail().text.startswith(greeting)


@then("both have the same id and the same code")
def same_mail(story: Story) -> None:
    """Whoever gets both can use either, and a mail server may drop one."""
    first, second = story.place.post.to(story.person.email)
    assert first.message["Message-ID"] == second.message["Message-ID"]
    assert first.code == second.code
