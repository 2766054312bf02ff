"""A browser, and in it the chat page of a server of this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.chromium import Browser, Page, open_browser
from services.scripted_chat import Served, enter_key


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    yield served
    served.stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(served: Served, browser: Browser) -> Iterator[Page]:
    """The page with its key entered, as a person enters it. Every test's port is another origin, so nothing is kept."""
    page = browser.open(served.address)
    enter_key(page, served.key)
    yield page
    page.close()
    assert page.problems == [], "the browser complained"
    assert [request for request in page.requests if not request.startswith(served.address)] == []
