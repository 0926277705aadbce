"""A browser as people use it: a page of another origin signs up, and an impatient person clicks twice."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.browser.chromium import CHROMIUM, MISSING, browser, context_of
from tests.browser.place import open_place
from tests.e2e.instance import HOST, QUICK, running
from tests.e2e.post import CaughtMails, Post

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason=MISSING)]
EMAIL, PASSWORD = "ada@example.test", "correct horse battery"
CALL = """async ([url, method, body, basic]) => {
  const headers = { "Content-Type": "application/json" };
  if (basic) headers.Authorization = "Basic " + btoa(basic);
  const answer = await fetch(url, { method, headers, body: body && JSON.stringify(body) });
  return [answer.status, answer.headers.get("X-Request-ID") !== null];
}"""


@contextmanager
def pages(folder: Path) -> Iterator[str]:
    """Serve a folder as another origin; give its address."""
    with ThreadingHTTPServer((HOST, 0), partial(SimpleHTTPRequestHandler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{HOST}:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def launched() -> Iterator[Browser]:
    """Run one browser."""
    with browser() as one:
        yield one


def test_a_page_of_an_allowed_origin_signs_up(launched: Browser, tmp_path: Path) -> None:
    """With its origin in CORS_ORIGINS a page registers, activates and reads the account, and sees our headers."""
    (tmp_path / "index.html").write_text("<title>A product</title>", encoding="utf-8")
    with pages(tmp_path) as origin, running(tmp_path, "uvloop", QUICK | {"CORS_ORIGINS": origin}) as instance:
        post = Post(CaughtMails(instance.data_dir / "mails"), instance.ledger)
        users, owner = f"http://{HOST}:{instance.port}/api/v1/users", f"{EMAIL}:{PASSWORD}"
        page = context_of(launched).new_page()
        page.goto(origin)
        body = {"email": EMAIL, "password": PASSWORD}
        assert page.evaluate(CALL, [f"{users}/register", "POST", body, None]) == [201, True]
        code = post.wait(EMAIL).code
        assert page.evaluate(CALL, [f"{users}/activate", "POST", {"code": code}, owner]) == [200, True]
        assert page.evaluate(CALL, [f"{users}/me", "GET", None, owner]) == [200, True]
        page.close()


def test_a_double_click_registers_once(launched: Browser, tmp_path: Path) -> None:
    """Two clicks on the form's button are one account, one mail and no error."""
    with open_place(tmp_path) as place:
        page, address = context_of(launched).new_page(), place.address()
        page.goto(place.url)
        page.get_by_label("E-mail address").fill(address)
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Create account").dblclick()
        expect(page.get_by_label("Code from the mail")).to_be_focused()
        expect(page.get_by_role("alert")).to_have_count(0)
        place.mail(address)
        assert len(place.post.to(address)) == 1
        page.close()
