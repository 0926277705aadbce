"""The languages that mails can be written in: built in, and those that the operator's folder adds.

Imports the standard library only, so that the HTTP layer can ask without paying for the mail worker.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from service.settings import Settings

BUILT_IN = Path(__file__).parent / "templates"
FALLBACK = "en"
TEMPLATE_NAME = re.compile(r"(?P<kind>code|notice)\.(?P<locale>[a-z]{2,3}(-[A-Za-z0-9]{2,8})*)\.(?P<form>txt|html)")


def available_locales(settings: Settings) -> tuple[str, ...]:
    """Return the language tags that every kind of mail can be written in; English is always the first of them."""
    texts: dict[str, set[str]] = {}
    for folder in folders(settings):
        for name in names(folder):
            found = TEMPLATE_NAME.fullmatch(name)
            if found and found["form"] == "txt":
                texts.setdefault(found["locale"], set()).add(found["kind"])
    whole = {locale for locale, kinds in texts.items() if kinds == {"code", "notice"}}
    return (FALLBACK, *sorted(whole - {FALLBACK}))


def folders(settings: Settings) -> tuple[Path, ...]:
    """Return where templates are looked for, the operator's folder first."""
    return (BUILT_IN,) if settings.mail_templates is None else (settings.mail_templates, BUILT_IN)


def names(folder: Path) -> Iterable[str]:
    """Return the names of a folder's files; those that begin with a dot are not ours (a mounted ConfigMap has some)."""
    return sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def nearest(locale: str, available: Sequence[str]) -> str:
    """Return the one of `available` that serves `locale`: `de-AT`, else `de`, else English (RFC 4647, lookup)."""
    known = {tag.lower(): tag for tag in available}
    wanted = locale.lower().replace("_", "-")
    while wanted:
        if wanted in known:
            return known[wanted]
        wanted = wanted.rpartition("-")[0]
    return FALLBACK
