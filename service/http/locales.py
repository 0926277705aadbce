"""Chooses the language of a mail from what the client asked for and what there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from werkzeug.datastructures import LanguageAccept
from werkzeug.http import parse_accept_header

from service.mailer.locales import FALLBACK, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence


def choose(asked: str | None, accept_language: str, available: Sequence[str]) -> str:
    """Return the one of `available` that fits best: the body's choice first, else Accept-Language, else English.

    A region falls back to its language before the next wish counts: who reads `de-AT, en;q=0.5` is served by `de`.
    """
    if asked is not None:
        return nearest(asked, available)
    for wish, quality in parse_accept_header(accept_language, LanguageAccept):  # the best first
        served = nearest(wish, available)
        if quality > 0 and (served != FALLBACK or wish.lower().partition("-")[0] == FALLBACK):
            return served
    return FALLBACK
