from __future__ import annotations

import re
from typing import TYPE_CHECKING

import psutil
import pytest
from playwright.sync_api import expect

from tests.browser.chromium import Watch, context_of, sign_in
from tests.browser.place import TOKEN
from tests.servers.waiting import wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

    from tests.browser.place import Place

UPDATE_MS = 6000  # a reading every two seconds, of figures that may be two seconds old
AWAY_MS = 25_000  # without Redis the levels of other workers come with their checkpoints


def count_of(tab: Page, step: str) -> Locator:
    """Return the cell with the number of a step of the funnel."""
    return tab.locator("#funnel").get_by_role("row").filter(has_text=step).locator("td").first


def opened(tab: Page, place: Place) -> None:
    """Open the dashboard and wait for its first reading."""
    tab.goto(f"{place.url}/ops")
    expect(tab.get_by_role("status")).to_have_text("Live")
    expect(count_of(tab, "Registered")).to_be_visible()


def test_the_figures_follow_what_happens(tab: Page, developers: Place) -> None:
    """Without a reload a registration and its activation appear in the funnel, the routes and the charts."""
    opened(tab, developers)
    registered, activated = (int(count_of(tab, step).inner_text()) for step in ("Registered", "Activated"))
    developers.sign_up()
    expect(count_of(tab, "Registered")).to_have_text(str(registered + 1), timeout=UPDATE_MS)
    expect(count_of(tab, "Activated")).to_have_text(str(activated + 1), timeout=UPDATE_MS)
    expect(tab.locator("#activated")).to_have_text(str(activated + 1))
    route = tab.locator("#routes").get_by_role("row").filter(has_text="POST /api/v1/users/activate")
    expect(route).to_contain_text(re.compile(r"200 . \d"))
    assert tab.locator("#requests-chart polyline").count()
    expect(tab.locator("#p95")).to_contain_text("ms")


def test_limits_and_dead_mails_are_told(tab: Page, guarded: Place) -> None:
    """A client that was turned away and a mail that nobody wanted are there, with their reason."""
    sign_in(tab, guarded.url, TOKEN)
    guarded.bad_day()
    limit = tab.locator("#limits").get_by_role("row").filter(has=tab.get_by_role("rowheader", name="register"))
    expect(limit.locator("td").nth(1)).to_have_text("2", timeout=UPDATE_MS)
    expect(tab.locator("#dead")).to_contain_text("550", timeout=UPDATE_MS)
    expect(tab.locator("#breakers")).to_contain_text("answers")


def test_reading_can_be_paused(tab: Page, developers: Place) -> None:
    """The button stops every change of the page, says so, and starts again."""
    opened(tab, developers)
    pause = tab.get_by_role("button", name="Pause")
    pause.click()
    expect(tab.get_by_role("status")).to_have_text("Paused")
    expect(pause).to_have_attribute("aria-pressed", "true")
    before = count_of(tab, "Registered").inner_text()
    developers.sign_up(activate=False)
    watched = tab.evaluate(
        """async () => {
          let changes = 0;
          new MutationObserver((seen) => { changes += seen.length; })
            .observe(document.body, { subtree: true, childList: true, characterData: true });
          await new Promise((done) => setTimeout(done, 2500));
          return changes;
        }"""
    )
    assert watched == 0
    pause.click()
    expect(count_of(tab, "Registered")).to_have_text(str(int(before) + 1), timeout=UPDATE_MS)


def test_the_token_opens_a_session_that_scripts_cannot_read(tab: Page, guarded: Place) -> None:
    """Without a session the token is asked for; what the browser keeps is not it, and only the browser sends it."""
    tab.context.clear_cookies()
    tab.goto(f"{guarded.url}/ops")
    assert tab.url == f"{guarded.url}/ops/session"
    sign_in(tab, guarded.url, TOKEN)
    expect(tab.get_by_role("status")).to_have_text("Live")
    (cookie,) = tab.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/ops")
    assert TOKEN not in cookie["value"]
    assert tab.evaluate("document.cookie") == ""
    assert "token" not in tab.url
    tab.get_by_role("button", name="Sign out").click()
    tab.wait_for_url(f"{guarded.url}/ops/session")
    assert tab.context.cookies() == []


def test_signing_in_needs_no_script(launched: Browser, guarded: Place) -> None:
    """The form works by itself: the browser sends it, follows to the dashboard, and can sign out again."""
    context = context_of(launched, java_script_enabled=False)
    page = context.new_page()
    sign_in(page, guarded.url, TOKEN)
    expect(page.get_by_role("heading", name="Routes")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url(f"{guarded.url}/ops/session")
    assert context.cookies() == []
    context.close()


def test_a_wrong_token_is_refused_and_cannot_be_tried_for_long(tab: Page, guarded: Place) -> None:
    """The sentence stands at the field; after as many wrong ones as the limit allows, even the right one must wait."""
    tab.context.clear_cookies()
    tab.set_extra_http_headers({"X-Forwarded-For": "203.0.113.9"})  # the other tests' client must not be locked out
    tab.goto(f"{guarded.url}/ops/session")
    field = tab.get_by_label("Token")

    def tried(token: str) -> int:
        field.fill(token)
        with tab.expect_response("**/ops/session") as answer:
            tab.get_by_role("button", name="Sign in").click()
        return answer.value.status

    assert tried("not the token") == 401
    expect(field).to_have_accessible_description(re.compile("This is not the token"))
    expect(field).to_be_focused()
    wait_for(lambda: tried("a guess") == 429, "guesses are turned away")
    assert tried(TOKEN) == 429
    expect(field).to_have_accessible_description(re.compile(r"Try again in \d+ s"))
    assert tab.context.cookies() == []


def test_the_page_works_from_the_keyboard_alone(tab: Page, developers: Place) -> None:
    """The first stop leads past the header, every stop is seen, tables can be scrolled, Space pauses."""
    tab.set_viewport_size({"width": 800, "height": 700})
    opened(tab, developers)
    names = []
    for _ in range(14):
        tab.keyboard.press("Tab")
        focused = tab.locator(":focus")
        if not focused.count():
            break
        names.append(focused.get_attribute("aria-labelledby") or focused.inner_text())
        assert focused.evaluate("it => getComputedStyle(it).outlineStyle") != "none"
        if names[-1] == "Pause":
            tab.keyboard.press("Space")
            expect(tab.get_by_role("status")).to_have_text("Paused")
    assert names[:4] == ["To the figures", "Pause", "Caught mails", "API"]
    tables = tab.locator("table").evaluate_all("all => all.map(it => `${it.id}-caption`)")
    assert [name for name in names if name.endswith("-caption")] == tables
    assert len(tables) == 7


def test_one_place_is_spoken_and_it_says_little(tab: Page, developers: Place) -> None:
    """Of all that changes, only the state of the connection is announced, and a reading does not change it."""
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


def test_charts_are_told_in_words_and_lines_differ_without_colour(tab: Page, developers: Place) -> None:
    """Each chart has a name and its newest figures as text; its lines are dashed differently."""
    opened(tab, developers)
    developers.sign_up()
    for name in ("Requests a second", "Latency, milliseconds", "Mails waiting"):
        chart = tab.get_by_role("img", name=name)
        expect(chart).to_have_accessible_description(re.compile("[a-z0-9]+: (\\d|\N{EN DASH})"))
    expect(tab.locator("#latency-chart .line.p99")).to_have_count(1, timeout=UPDATE_MS)
    dashes = tab.locator("#latency-chart .swatch line").evaluate_all(
        "all => all.map(it => getComputedStyle(it).strokeDasharray)"
    )
    assert len(set(dashes)) == 3


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_nothing_moves_for_those_who_do_not_want_it(tab: Page, developers: Place, motion: str) -> None:
    """The one animation stops where the system asks for it."""
    tab.emulate_media(reduced_motion="reduce" if motion == "reduce" else "no-preference")
    opened(tab, developers)
    moving = tab.locator("#state").evaluate("it => getComputedStyle(it, '::before').animationName")
    assert moving == ("none" if motion == "reduce" else "beat")


def test_too_many_dashboards_are_told_so(tab: Page, developers: Place) -> None:
    """Where no stream can be had the page says so, and is live again once one can be had."""
    busy = {"Retry-After": "3"}
    tab.route("**/ops/events", lambda route: route.fulfill(status=503, headers=busy, body=""))
    tab.goto(f"{developers.url}/ops")
    expect(tab.get_by_role("status")).to_contain_text("Too many dashboards")
    tab.unroute("**/ops/events")
    expect(tab.get_by_role("status")).to_have_text("Live", timeout=10_000)


def test_a_server_that_is_away_is_told_and_forgotten_when_it_is_back(tab: Page, developers: Place) -> None:
    """A stalled Redis becomes a note and a server that is away, while the figures go on."""
    opened(tab, developers)
    (redis,) = (each for each in psutil.Process(developers.instance.process.pid).children() if "valkey" in each.name())
    redis.suspend()
    try:
        note = tab.get_by_role("region", name="Notes")
        expect(note).to_contain_text("Redis is away", timeout=2 * UPDATE_MS)
        state = tab.locator("#breakers").get_by_role("row").filter(has_text="redis")
        expect(state).to_contain_text("away", timeout=AWAY_MS)
        expect(tab.locator("#breakers-word")).to_have_text("away: redis")
        expect(tab.get_by_role("status")).to_have_text("Live")
    finally:
        redis.resume()
    expect(note).to_be_hidden(timeout=2 * UPDATE_MS)
    expect(tab.locator("#breakers-word")).to_have_text("all servers answer", timeout=AWAY_MS)


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
