"""Writes a mail's subject and bodies from the templates, which are checked before the first mail needs them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from jinja2 import (
    ChoiceLoader,
    Environment,
    FileSystemLoader,
    StrictUndefined,
    TemplateError,
    UndefinedError,
    meta,
    select_autoescape,
)

from actors.domain.mail import WRITTEN, MailKind
from service.mailer.locales import FALLBACK, TEMPLATE_NAME, available_locales, folders, names, nearest
from service.settings import BadSettings

if TYPE_CHECKING:
    from pathlib import Path

    from actors.domain.mail import ClaimedMail
    from service.settings import Settings

LAYOUT = "layout.html"
IGNORED = ("README", "README.md", "README.txt")
PLACEHOLDERS = {"code", "seconds", "site", "public_url", "locale"}
SUBJECT = "Subject:"
SAMPLE_CODE = "0" * 6


@dataclass(frozen=True, slots=True)
class Written:
    """A mail in one language; `html` is None where there is no such template, `code` where it carries none."""

    locale: str
    subject: str
    text: str = field(repr=False)
    html: str | None = field(repr=False)
    code: str | None = field(default=None, repr=False)


class Wording:
    """The templates of this service: an operator's file replaces the built-in one of the same name.

    Raises BadSettings, with one line that names the file, for a template that could not become a mail.
    """

    def __init__(self, settings: Settings, site: str | None = None) -> None:
        self._folders = folders(settings)
        self._loader = ChoiceLoader([FileSystemLoader(folder) for folder in self._folders])
        self._environment = Environment(
            loader=self._loader,
            autoescape=select_autoescape(("html",), default_for_string=False),
            undefined=StrictUndefined,
            auto_reload=False,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        public_url = settings.public_url
        self._facts: dict[str, Any] = {
            "seconds": settings.code_ttl_seconds,
            "public_url": public_url,
            "site": site or (urlsplit(public_url).hostname if public_url else None),
        }
        files = self._files(settings.mail_templates)
        self.locales = available_locales(settings)
        self._html = {name for name in files if name.endswith(".html")}
        for name in sorted(files - {LAYOUT}):
            self._check(name)

    def write(self, kind: MailKind, locale: str, code: str | None) -> Written:
        """Write the mail in the language that serves `locale`, else in English."""
        locale = nearest(locale, self.locales)
        facts = {**self._facts, "code": code, "locale": locale}
        head, _, text = self._rendered(f"{kind}.{locale}.txt", facts).partition("\n")
        name = f"{kind}.{locale}.html"
        html = self._rendered(name, facts) if name in self._html else None
        subject = " ".join(head.removeprefix(SUBJECT).split())
        return Written(locale, subject, text.strip("\n") + "\n", html, code)

    def of(self, mail: ClaimedMail, code: str | None) -> Written:
        """Write a claimed mail."""
        return self.write(mail.kind, mail.locale, code)

    def _rendered(self, name: str, facts: dict[str, Any]) -> str:
        return self._environment.get_template(name).render(facts)

    def _files(self, own: Path | None) -> set[str]:
        """Return the names of all templates; refuses what the operator's folder has beside them."""
        try:
            found = {name for folder in self._folders for name in names(folder)} - set(IGNORED)
        except OSError as error:
            raise BadSettings(f"VESTIBULE_MAIL_TEMPLATES: cannot read {own}: {error.strerror}") from None
        for name in sorted(found - {LAYOUT}):
            match = TEMPLATE_NAME.fullmatch(name)
            if match is None:
                raise _bad(name, "is no template; they are named like code.en.txt, code.en.html, notice.en.txt")
            for kind in WRITTEN:
                needed = f"{kind}.{match['locale']}.txt"
                if needed not in found:
                    raise _bad(name, f"needs {needed} beside it")
        return found

    def _check(self, name: str) -> None:
        """Refuse a template that does not parse, asks for what there is not, or makes no proper mail."""
        try:
            source, _, _ = self._loader.get_source(self._environment, name)
            unknown = meta.find_undeclared_variables(self._environment.parse(source)) - PLACEHOLDERS
            if unknown:
                raise _bad(name, f"asks for {min(unknown)}; there is {', '.join(sorted(PLACEHOLDERS))}")
            for public_url in (None, "https://example.com"):
                facts = {**self._facts, "public_url": public_url, "locale": FALLBACK}
                _check_mail(name, self._rendered(name, {**facts, "code": _sample(name)}))
        except UndefinedError as error:
            raise _bad(name, str(error.message)) from None
        except (TemplateError, UnicodeDecodeError, TypeError) as error:
            raise _bad(name, str(error).partition("\n")[0] or type(error).__name__) from None


def _sample(name: str) -> str | None:
    return SAMPLE_CODE if name.startswith("code.") else None


def _check_mail(name: str, mail: str) -> None:
    if not name.endswith(".txt"):
        return
    head, _, text = mail.partition("\n")
    if not head.startswith(SUBJECT) or not head.removeprefix(SUBJECT).strip():
        raise _bad(name, "must begin with a line `Subject: …`")
    if SAMPLE_CODE in head:
        raise _bad(name, "must not show the code in its subject: lock screens show subjects")
    if name.startswith("code.") and SAMPLE_CODE not in text.splitlines():
        raise _bad(name, "must have {{ code }} alone on a line")


def _bad(name: str, what: str) -> BadSettings:
    return BadSettings(f"VESTIBULE_MAIL_TEMPLATES: {name} {what}")
