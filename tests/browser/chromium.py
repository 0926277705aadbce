"""A Chromium that can reach nothing but loopback, and pages that write down what they should not do."""

from __future__ import annotations

import re
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request

CHROMIUM = shutil.which("chromium")
MISSING = "Chromium is not installed (on Debian: apt-get install chromium)"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
PATIENCE_MS = 15_000
REFUSED = re.compile(r"Failed to load resource: the server responded with a status of (4\d\d|503) ")  # answers we show


@dataclass
class Watch:
    """Where a browser has sent requests, and what its pages have complained about."""

    hosts: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)

    def requested(self, request: Request) -> None:
        """Note the host; what a page carries in itself has none."""
        parts = urlsplit(request.url)
        if parts.scheme not in {"data", "about", "blob"}:
            self.hosts.add(parts.netloc)

    def said(self, message: ConsoleMessage) -> None:
        """Note warnings and errors, violations of the policy among them, but for refusals of a call."""
        if message.type in {"error", "warning"} and not REFUSED.match(message.text):
            self.complaints.append(message.text)

    def attach(self, context: BrowserContext) -> None:
        """Watch a context and every page of it."""
        context.on("request", self.requested)
        context.on("console", self.said)
        context.on("weberror", lambda error: self.complaints.append(str(error.error)))


@contextmanager
def browser() -> Iterator[Browser]:
    """Run one."""
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield launched
        launched.close()


def context_of(launched: Browser, watch: Watch | None = None, **options: Any) -> BrowserContext:  # noqa: ANN401 - Playwright's own
    """Return a context whose waits are bounded."""
    context = launched.new_context(**options)
    context.set_default_timeout(PATIENCE_MS)
    if watch is not None:
        watch.attach(context)
    return context


def sign_in(page: Page, url: str, token: str) -> None:
    """Give the operators' page a token."""
    page.goto(f"{url}/ops")
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Show the figures").click()
