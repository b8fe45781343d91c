"""A browser page, a worker that a test drives by hand, and a Pusher."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, Page

from deltafan.devserver.pusher import PusherEmulator
from deltafan.devserver.pusher import running as pusher_running
from deltafan.settings import RedisSettings
from tests.browser.kit import open_browser, open_page
from tests.e2e.relay_kit import HandWorker, hand_worker


@pytest.fixture
async def worker(redis_settings: RedisSettings) -> AsyncIterator[HandWorker]:
    async with hand_worker(redis_settings) as worker:
        yield worker


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with open_browser() as browser:
        yield browser


@pytest.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    async with open_page(browser) as page:
        yield page


@pytest.fixture
async def emulator() -> AsyncIterator[PusherEmulator]:
    async with pusher_running() as emulator:
        yield emulator
