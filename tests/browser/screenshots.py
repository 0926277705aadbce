"""Takes the pictures of docs/screenshots: `python -m tests.browser.screenshots FOLDER`."""

from __future__ import annotations

import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tests.browser.chromium import browser, context_of, sign_in
from tests.browser.place import TOKEN, guarded_place
from tests.servers.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page, ViewportSize

    from tests.browser.place import Place

SCREEN: ViewportSize = {"width": 1280, "height": 930}
PHONE: ViewportSize = {"width": 390, "height": 1300}
FORM: ViewportSize = {"width": 640, "height": 620}
COURSE_SECONDS = 58.0  # of a minute, which is what a young page shows


def pictures(launched: Browser, place: Place, folder: Path, seconds: float) -> list[Path]:
    """Take them all, the dashboard's after so many seconds in which people sign up."""
    made: list[Path] = []

    def take(page: Page, name: str) -> None:
        made.append(folder / f"{name}.png")
        page.screenshot(path=made[-1], animations="disabled")

    light = context_of(launched, viewport=SCREEN, color_scheme="light")
    page = light.new_page()
    sign_in(page, place.url, TOKEN)
    with crowd(place):
        wait_for(lambda: page.evaluate("performance.now()") > seconds * 1000, "the charts show some time", 2 * seconds)
        redrawn(page)
        take(page, "dashboard-light")
        page.emulate_media(color_scheme="dark")
        take(page, "dashboard-dark")
        page.emulate_media(color_scheme="light")
        page.set_viewport_size(PHONE)
        redrawn(page)
        take(page, "dashboard-phone")
    page.goto(place.url)
    page.set_viewport_size(FORM)
    page.get_by_label("E-mail address").fill("ada@example.com")
    page.get_by_label("Password").fill("ada@example.com")
    page.get_by_role("button", name="Create account").click()
    page.locator("#password-problem").filter(has_text="address").wait_for()
    take(page, "sign-up")
    light.close()
    return made


@contextmanager
def crowd(place: Place) -> Iterator[None]:
    """Let people come while the body runs."""
    enough = threading.Event()

    def come() -> None:
        place.bad_day()
        number = 0
        while not enough.wait(0.5 + 0.45 * math.sin(number / 5)):  # they come in waves
            place.person(number)
            number += 1

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(come)
        try:
            yield
        finally:
            enough.set()
        coming.result()


def redrawn(page: Page) -> None:
    """Wait until another reading is shown."""
    shown = page.locator("#updated").inner_text()
    page.locator("#updated").filter(has_not_text=shown).wait_for()


def main(folder: Path) -> None:
    """Run a service, make it busy, take the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as scratch, guarded_place(Path(scratch)) as place, browser() as launched:
        for picture in pictures(launched, place, folder, COURSE_SECONDS):
            print(f"{picture} {picture.stat().st_size // 1024} KB")  # noqa: T201 - for people


if __name__ == "__main__":
    main(Path(sys.argv[1]))
