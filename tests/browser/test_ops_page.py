from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
from playwright.sync_api import expect

from tests.browser.chromium import Watch, context_of, sign_in
from tests.browser.place import TOKEN

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

    from tests.browser.place import Place

UPDATE_MS = 6000  # a reading every two seconds, of figures that may be two seconds old


def count_of(tab: Page, step: str) -> Locator:
    """Return the cell with the number of a step."""
    return tab.locator("#sign-ups").get_by_role("row").filter(has_text=step).locator("td")


def opened(tab: Page, place: Place) -> None:
    """Open the page and wait for its first reading."""
    tab.goto(f"{place.url}/ops")
    expect(tab.get_by_role("status")).to_have_text("The service is ok.")
    expect(count_of(tab, "Registered")).to_be_visible()


def test_the_figures_follow_what_happens(tab: Page, developers: Place) -> None:
    """Without a reload a registration and its activation appear among the sign-ups and the routes."""
    opened(tab, developers)
    registered, activated = (int(count_of(tab, step).inner_text()) for step in ("Registered", "Activated"))
    developers.sign_up()
    expect(count_of(tab, "Registered")).to_have_text(str(registered + 1), timeout=UPDATE_MS)
    expect(count_of(tab, "Activated")).to_have_text(str(activated + 1), timeout=UPDATE_MS)
    expect(tab.locator("#routes")).to_contain_text("POST /api/v1/users/activate")


def test_the_token_is_asked_for_and_kept_nowhere(launched: Browser, guarded: Place) -> None:
    """A wrong one shows the answer's sentence, the right one the figures; a reload asks again."""
    context = context_of(launched)
    page = context.new_page()
    sign_in(page, guarded.url, "not the token")
    expect(page.get_by_role("status")).to_have_text("This is for operators, who send a token.")
    expect(page.locator("#figures")).to_be_hidden()
    sign_in(page, guarded.url, TOKEN)
    expect(count_of(page, "Registered")).to_be_visible()
    assert context.cookies() == []
    assert page.evaluate("localStorage.length + sessionStorage.length") == 0
    page.reload()
    expect(page.get_by_label("Token")).to_be_visible()
    context.close()


def test_one_place_is_spoken_and_it_says_little(tab: Page, developers: Place) -> None:
    """Of all that changes only the state is announced, and a reading does not change it."""
    opened(tab, developers)
    live = tab.locator("[aria-live], [role=status], [role=alert], [role=log]")
    assert live.evaluate_all("all => all.map(it => it.id)") == ["state"]
    changes = tab.evaluate(
        """async () => {
          let changes = 0;
          new MutationObserver((seen) => { changes += seen.length; })
            .observe(document.getElementById("state"), { subtree: true, childList: true, characterData: true });
          await new Promise((done) => setTimeout(done, 4500));
          return changes;
        }"""
    )
    assert changes == 0


def test_a_server_that_is_away_is_told_and_forgotten_when_it_is_back(tab: Page, developers: Place) -> None:
    """A stalled Redis becomes a note and a degraded service, while the figures go on."""
    opened(tab, developers)
    (redis,) = (each for each in psutil.Process(developers.instance.process.pid).children() if "valkey" in each.name())
    redis.suspend()
    try:
        expect(tab.locator("#notes")).to_contain_text("Redis is away", timeout=2 * UPDATE_MS)
        expect(tab.get_by_role("status")).to_have_text("The service is degraded.")
    finally:
        redis.resume()
    expect(tab.locator("#notes")).to_be_empty(timeout=2 * UPDATE_MS)
    expect(tab.get_by_role("status")).to_have_text("The service is ok.")


def test_the_watch_sees_what_it_is_there_for(launched: Browser, developers: Place) -> None:
    """A page that asked another host, or broke the policy, would not go unnoticed."""
    watch = Watch()
    context = context_of(launched, watch)
    page = context.new_page()
    page.goto(developers.url)
    page.evaluate("document.body.setAttribute('style', 'color: red')")
    page.evaluate("new Image().src = 'http://elsewhere.test/pixel'")
    assert len([text for text in watch.complaints if "Content Security Policy" in text]) == 2
    page.goto("data:text/html,<p>elsewhere")
    page.evaluate("fetch('http://elsewhere.test/', {mode: 'no-cors'}).catch(() => 0)")
    assert "elsewhere.test" in watch.hosts
    context.close()
