from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from service.mailer.locales import available_locales, nearest
from service.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


def test_english_and_german_are_built_in() -> None:
    """Without a folder of the operator there are two languages, English first."""
    assert available_locales(Settings()) == ("en", "de")


def test_a_folder_adds_a_language_once_both_kinds_of_mail_have_a_text(tmp_path: Path) -> None:
    """A language that only half of the mails are written in is not offered."""
    (tmp_path / "code.fr.txt").touch()
    assert available_locales(Settings(mail_templates=tmp_path)) == ("en", "de")
    (tmp_path / "notice.fr.txt").touch()
    assert available_locales(Settings(mail_templates=tmp_path)) == ("en", "de", "fr")


@pytest.mark.parametrize(
    ("asked", "served"),
    [("de", "de"), ("de-AT", "de"), ("DE_ch", "de"), ("de-Latn-AT", "de"), ("fr", "en"), ("", "en"), ("-", "en")],
)
def test_a_region_is_served_by_its_language_and_a_stranger_by_english(asked: str, served: str) -> None:
    """The look-up drops subtags from the end and never fails."""
    assert nearest(asked, ("en", "de")) == served


def test_asking_for_languages_costs_no_template_engine() -> None:
    """API workers import this module."""
    program = "import sys, service.mailer.locales; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"jinja2", "aiosmtplib", "taskiq", "pydantic"} & set(modules)
