from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.screenshots import pictures

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.browser.place import Place

SAVED = Path(__file__).parents[2] / "docs" / "screenshots"
MOST_BYTES = 150_000
PNG = b"\x89PNG\r\n\x1a\n"


def test_the_pictures_of_the_documents_can_be_taken_anew(launched: Browser, guarded: Place, tmp_path: Path) -> None:
    """The program makes a small picture for each that is saved, and for no other."""
    made = pictures(launched, guarded, tmp_path)
    assert {picture.name for picture in made} == {picture.name for picture in SAVED.iterdir()}
    for picture in made:
        content = picture.read_bytes()
        assert content.startswith(PNG)
        assert len(content) < MOST_BYTES


@pytest.mark.parametrize("picture", sorted(SAVED.glob("*.png")), ids=lambda path: path.stem)
def test_saved_pictures_are_small_and_shown(picture: Path) -> None:
    """Each is under 150 KB and referred to by a document."""
    assert picture.stat().st_size < MOST_BYTES
    documents = [picture.parents[1] / "operations.md", picture.parents[2] / "README.md"]
    assert any(f"screenshots/{picture.name}" in document.read_text(encoding="utf-8") for document in documents)
