from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.browser.contrast import faint_texts

if TYPE_CHECKING:
    from playwright.sync_api import Page, ViewportSize

    from tests.browser.place import Place

PAGES = ["/", "/docs", "/problems/weak-password", "/dev/mail", "/ops"]
PHONE: ViewportSize = {"width": 360, "height": 740}
SCREEN: ViewportSize = {"width": 1280, "height": 800}


def test_the_reader_of_the_description_leads_to_each_call(tab: Page, developers: Place) -> None:
    """/docs lists the calls, each entry leads to its article, and problems unfold to an example."""
    tab.goto(f"{developers.url}/docs")
    tab.get_by_role("link", name="POST /api/v1/users/register").click()
    article = tab.locator("article#register")
    expect(article).to_be_in_viewport()
    example = article.locator("details", has_text="WeakPassword")
    expect(example.locator("pre")).to_be_hidden()
    example.locator("summary").click()
    expect(example.locator("pre")).to_contain_text('"error"')


def test_a_problem_explains_itself(tab: Page, developers: Place) -> None:
    """A problem's address shows its code, its sentence and what to do."""
    tab.goto(f"{developers.url}/problems/weak-password")
    expect(tab.get_by_role("heading", level=1)).to_have_text("Weak password")
    expect(tab.get_by_text("WeakPassword", exact=True)).to_be_visible()
    expect(tab.get_by_text("Mend what `reasons` name")).to_be_visible()


@pytest.mark.parametrize("path", PAGES)
def test_pages_fit_a_phone(tab: Page, developers: Place, path: str) -> None:
    """Nothing makes the page itself wider than a small phone."""
    tab.set_viewport_size(PHONE)
    tab.goto(developers.url + path)
    expect(tab.get_by_role("main")).to_be_visible()
    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", PAGES)
def test_all_text_is_easy_to_read(tab: Page, developers: Place, path: str, scheme: str) -> None:
    """Every text has a contrast of 4.5 to what lies behind it (WCAG 2.2, 1.4.3), in light and in dark."""
    tab.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    tab.set_viewport_size(SCREEN)
    tab.goto(developers.url + path)
    expect(tab.get_by_role("heading", level=1)).to_be_visible()
    assert faint_texts(tab) == []


@pytest.mark.parametrize("path", PAGES)
def test_pages_have_landmarks_and_ordered_headings(tab: Page, developers: Place, path: str) -> None:
    """One main, one first heading, no level left out, a language, and a caption or a header row for each table."""
    tab.goto(developers.url + path)
    expect(tab.get_by_role("main")).to_have_count(1)
    levels = [
        int(tag[1])
        for tag in tab.locator("h1, h2, h3, h4").evaluate_all("all => all.map(it => it.tagName.toLowerCase())")
    ]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    assert tab.locator("html").get_attribute("lang") == "en"
    for table in tab.locator("table").all():
        assert table.locator("caption, thead th[scope=col]").count()
