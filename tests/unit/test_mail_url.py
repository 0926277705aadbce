from __future__ import annotations

import pytest

from service.mailer.mail_url import HttpProvider, SmtpServer, parse
from service.settings import BadSettings


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("smtp://mail", SmtpServer("mail", 25, "none")),
        ("smtp://127.0.0.1:2525/", SmtpServer("127.0.0.1", 2525, "none")),
        ("smtp+starttls://mail", SmtpServer("mail", 587, "starttls")),
        ("smtps://mail", SmtpServer("mail", 465, "tls")),
        ("smtps://[::1]:4650", SmtpServer("::1", 4650, "tls")),
        ("smtps://us%40er:p%2Fa%23s%3As@mail", SmtpServer("mail", 465, "tls", "us@er", "p/a#s:s")),
        ("https://api.example/v1/mail?x=1", HttpProvider("https://api.example/v1/mail?x=1")),
        ("http://api.example", HttpProvider("http://api.example/")),
        ("https://me:to%40ken@api.example:8443/m", HttpProvider("https://api.example:8443/m", "me", "to@ken")),
        ("https://token@api.example/m", HttpProvider("https://api.example/m", None, "token")),
        ("https://:token@[::1]:90/m", HttpProvider("https://[::1]:90/m", None, "token")),
    ],
)
def test_every_form_of_mail_url_is_read(url: str, server: SmtpServer | HttpProvider) -> None:
    """Hosts, default ports and percent-decoded credentials."""
    assert parse(url) == server


@pytest.mark.parametrize(
    "url",
    [
        "mail:25",
        "imap://mail",
        "smtp://",
        "smtp://user:secret@",
        "smtp://mail:port",
        "smtp://mail:99999",
        "smtp://user:se/cret@mail",
        "smtp://user:se#cret@mail",
        "smtp://mail/path",
        "smtp://ma il",
    ],
)
def test_a_bad_mail_url_stops_the_start_without_showing_its_password(url: str) -> None:
    """The line names the setting and repeats nothing of the value."""
    with pytest.raises(BadSettings) as caught:
        parse(url)
    assert str(caught.value).startswith("VESTIBULE_MAIL_URL: ")
    assert "cret" not in str(caught.value)


def test_no_repr_shows_a_password() -> None:
    """Neither server nor provider says how it is logged in to."""
    assert "hidden" not in repr(parse("smtps://hidden:hidden@mail"))
    assert "hidden" not in repr(parse("https://hidden:hidden@mail/hidden"))
