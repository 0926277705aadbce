from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest

from actors.domain.mail import MailKind
from service.mailer.wording import Wording
from service.settings import BadSettings, Settings

if TYPE_CHECKING:
    from pathlib import Path

    from service.mailer.wording import Written

CODE = "012345"
LOCALES = ("en", "de")
KINDS = (MailKind.CODE, MailKind.NOTICE)


def written(kind: MailKind, locale: str, **values: object) -> Written:
    """Write a mail with the built-in templates."""
    return Wording(Settings.model_validate(values)).write(kind, locale, CODE if kind is MailKind.CODE else None)


@pytest.mark.parametrize("locale", LOCALES)
def test_the_code_stands_alone_on_a_line_once_and_not_in_the_subject(locale: str) -> None:
    """People copy it by line, machines find it by line, and lock screens do not show it."""
    mail = written(MailKind.CODE, locale)
    assert mail.text.splitlines().count(CODE) == 1
    assert mail.text.count(CODE) == 1
    assert CODE not in mail.subject


@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_else_in_a_mail_looks_like_a_code(kind: MailKind, locale: str) -> None:
    """No colour, size or year is a word of four to ten digits, in text or HTML."""
    mail = written(kind, locale, public_url="https://join.example.com")
    found = re.findall(r"\b\d{4,10}\b", f"{mail.subject}\n{mail.text}\n{mail.html}")
    assert set(found) == ({CODE} if kind is MailKind.CODE else set())


@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.parametrize("kind", KINDS)
def test_links_come_with_a_public_url_only(kind: MailKind, locale: str) -> None:
    """Without PUBLIC_URL a mail names no address to click on."""
    without, with_url = written(kind, locale), written(kind, locale, public_url="https://join.example.com")
    assert without.html is not None
    assert with_url.html is not None
    assert "http" not in without.text + without.html
    assert "https://join.example.com" in with_url.text
    assert 'href="https://join.example.com"' in with_url.html


@pytest.mark.parametrize("kind", KINDS)
def test_the_languages_differ_and_a_region_reads_its_own(kind: MailKind) -> None:
    """Austria reads German, France English."""
    assert written(kind, "de-AT") == written(kind, "de")
    assert written(kind, "fr") == written(kind, "en")
    assert written(kind, "de").subject != written(kind, "en").subject


@pytest.mark.parametrize(
    ("locale", "seconds", "said"),
    [
        ("en", 60, "valid for 1 minute after"),
        ("en", 120, "valid for 2 minutes after"),
        ("en", 90, "valid for 90 seconds after"),
        ("de", 60, "gilt eine Minute ab"),
        ("de", 120, "gilt 2 Minuten ab"),
        ("de", 90, "gilt 90 Sekunden ab"),
    ],
)
def test_the_life_of_the_code_is_said_as_a_person_would(locale: str, seconds: int, said: str) -> None:
    """In minutes where they are whole, in text and HTML alike."""
    mail = written(MailKind.CODE, locale, code_ttl_seconds=seconds)
    assert mail.html is not None
    assert said in mail.text
    assert said in mail.html


class Outline(HTMLParser):
    """Checks that tags nest and notes what is loaded from elsewhere."""

    VOID = ("meta", "br", "img", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open a tag."""
        self.loads += [f"{tag} {name}" for name, _ in attrs if name in {"src", "srcset", "background"}]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close the tag that was opened last."""
        assert self.open.pop() == tag


@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.parametrize("kind", KINDS)
def test_html_is_whole_names_its_language_and_loads_nothing(kind: MailKind, locale: str) -> None:
    """A mail tells no server that it was opened, and screen readers pronounce it right."""
    html = written(kind, locale, public_url="https://join.example.com").html
    assert html is not None
    outline = Outline()
    outline.feed(html)
    assert (outline.open, outline.loads) == ([], [])
    assert f'<html lang="{locale}">' in html
    assert "color-scheme" in html
    assert "{{" not in html
    assert "{%" not in html


def test_the_preheader_does_not_show_the_code() -> None:
    """What a phone shows beside the subject holds no code."""
    html = written(MailKind.CODE, "en").html
    assert html is not None
    preheader = re.search(r"mso-hide:all;\">(.*?)</div>", html, re.DOTALL)
    assert preheader is not None
    assert preheader[1]
    assert CODE not in preheader[1]


def test_the_name_of_the_site_is_escaped_in_html_and_plain_in_text(tmp_path: Path) -> None:
    """A display name with a bracket is no tag."""
    (tmp_path / "code.en.html").write_text("<p>{{ site }} {{ code }}</p>")
    mail = Wording(Settings(mail_templates=tmp_path), "A & <B>").write(MailKind.CODE, "en", CODE)
    assert mail.html == f"<p>A &amp; &lt;B&gt; {CODE}</p>"
    assert "A & <B>" in mail.subject


def test_a_file_of_the_operator_replaces_one_template_and_leaves_the_others(tmp_path: Path) -> None:
    """The German text and the HTML stay built in."""
    (tmp_path / "code.en.txt").write_text("Subject: Hi\r\n\r\n{{ code }}\r\n")
    (tmp_path / ".hidden").touch()
    (tmp_path / "README.md").touch()
    wording = Wording(Settings(mail_templates=tmp_path))
    mail = wording.write(MailKind.CODE, "en", CODE)
    assert (mail.subject, mail.text) == ("Hi", f"{CODE}\n")
    assert mail.html == written(MailKind.CODE, "en").html
    assert wording.write(MailKind.CODE, "de", CODE) == written(MailKind.CODE, "de")


def test_a_language_without_html_goes_out_as_text(tmp_path: Path) -> None:
    """An operator need not write HTML."""
    (tmp_path / "code.fr.txt").write_text("Subject: Votre code\n\n{{ code }}\n")
    (tmp_path / "notice.fr.txt").write_text("Subject: Avis\n\nRien.\n")
    mail = Wording(Settings(mail_templates=tmp_path)).write(MailKind.CODE, "fr-CA", CODE)
    assert (mail.locale, mail.subject, mail.html) == ("fr", "Votre code", None)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("code.en.txt", "Subject: x\n\n{{ code }}\n{{ name }}", "asks for name; there is"),
        ("code.en.txt", "{{ code }}\n", "must begin with a line `Subject"),
        ("code.en.txt", "Subject:\n\n{{ code }}\n", "must begin with a line `Subject"),
        ("code.en.txt", "Subject: {{ code }}\n\n{{ code }}\n", "must not show the code in its subject"),
        ("code.en.txt", "Subject: x\n\nIt is {{ code }}.\n", "alone on a line"),
        ("code.en.txt", "Subject: x\n\n{% if public_url %}\n{{ code }}\n{% endif %}", "alone on a line"),
        ("code.en.txt", "Subject: x\n\n{% if %}", "Expected an expression"),
        ("code.en.html", "<p>{{ code", "unexpected end of template"),
        ("code.en.html", "{% include 'nothing.html' %}", "nothing.html"),
        ("code.en.html", "{{ seconds.minutes }}", "no attribute 'minutes'"),
        ("code.fr.txt", "Subject: x\n\n{{ code }}\n", "needs notice.fr.txt"),
        ("cod.en.txt", "Subject: x", "is no template"),
    ],
)
def test_a_template_that_could_not_become_a_mail_stops_the_start(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    """One line names the setting, the file and what to mend."""
    (tmp_path / name).write_text(text)
    with pytest.raises(BadSettings) as caught:
        Wording(Settings(mail_templates=tmp_path))
    line = str(caught.value)
    assert line.startswith(f"VESTIBULE_MAIL_TEMPLATES: {name} ")
    assert said in line
    assert "\n" not in line


def test_a_folder_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    """A typo in the path does not quietly bring the built-in mails back."""
    with pytest.raises(BadSettings, match=r"VESTIBULE_MAIL_TEMPLATES: cannot read .*/nowhere: No such file"):
        Wording(Settings(mail_templates=tmp_path / "nowhere"))


def test_no_repr_shows_a_code() -> None:
    """A traceback or a log that shows a written mail shows no code."""
    assert CODE not in repr(written(MailKind.CODE, "en"))
