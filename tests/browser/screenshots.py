"""Takes the pictures of docs/screenshots: `python -m tests.browser.screenshots FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tests.browser.chromium import browser, context_of, sign_in
from tests.browser.place import TOKEN, guarded_place

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, ViewportSize

    from tests.browser.place import Place

SCREEN: ViewportSize = {"width": 1280, "height": 1100}
FORM: ViewportSize = {"width": 640, "height": 620}
PEOPLE = 12


def pictures(launched: Browser, place: Place, folder: Path) -> list[Path]:
    """Take them all, the operators' page's after some people have signed up."""
    made: list[Path] = []

    def take(page: Page, name: str) -> None:
        made.append(folder / f"{name}.png")
        page.screenshot(path=made[-1], animations="disabled")

    light = context_of(launched, viewport=SCREEN, color_scheme="light")
    page = light.new_page()
    place.bad_day()
    for number in range(PEOPLE):
        place.visit(number)
    sign_in(page, place.url, TOKEN)
    page.locator("#routes").filter(has_text="activate").wait_for()
    take(page, "operations")
    page.goto(place.url)
    page.set_viewport_size(FORM)
    page.get_by_label("E-mail address").fill("ada@example.com")
    page.get_by_label("Password").fill("ada@example.com")
    page.get_by_role("button", name="Create account").click()
    page.locator("#password-problem").filter(has_text="address").wait_for()
    take(page, "sign-up")
    light.close()
    return made


def main(folder: Path) -> None:
    """Run a service, make it busy, take the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as scratch, guarded_place(Path(scratch)) as place, browser() as launched:
        for picture in pictures(launched, place, folder):
            print(f"{picture} {picture.stat().st_size // 1024} KB")  # noqa: T201 - for people


if __name__ == "__main__":
    main(Path(sys.argv[1]))
