"""Services and a browser for the pages' tests, which all are slow, and need Chromium."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.chromium import CHROMIUM, MISSING, Watch, browser, context_of
from tests.browser.place import guarded_place, open_place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, BrowserContext, Page

    from tests.browser.place import Place

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what drives the browser."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.skipif(CHROMIUM is None, reason=MISSING))


@pytest.fixture(scope="package")
def developers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Give a service as on a developer's machine, under uvloop."""
    with open_place(tmp_path_factory.mktemp("open")) as place:
        yield place


@pytest.fixture(scope="package")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Give a service with an operators' token and a mail server, under trio."""
    with guarded_place(tmp_path_factory.mktemp("guarded"), "trio") as place:
        yield place


@pytest.fixture(scope="module")
def launched() -> Iterator[Browser]:
    """Give a browser; it ends with the module, because its event loop would be in the way of other tests'."""
    with browser() as one:
        yield one


@pytest.fixture(scope="module")
def watch() -> Watch:
    """Give the notes on everything that the module's pages do."""
    return Watch()


@pytest.fixture(scope="module")
def context(launched: Browser, watch: Watch) -> Iterator[BrowserContext]:
    """Give the one context that a module's tests share: a new one costs most of a second."""
    shared = context_of(launched, watch)
    yield shared
    shared.close()


@pytest.fixture
def tab(context: BrowserContext, watch: Watch, request: pytest.FixtureRequest) -> Iterator[Page]:
    """Give a fresh tab; afterwards nothing was asked of another host and nothing was complained about."""
    page = context.new_page()
    yield page
    page.close()
    running = [request.getfixturevalue(name) for name in ("developers", "guarded") if name in request.fixturenames]
    assert watch.hosts <= {place.url.removeprefix("http://") for place in running}
    assert watch.complaints == []
    watch.hosts.clear()
