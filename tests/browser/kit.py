"""What the browser tests share: a page that may not err, and what is asked of the chat in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import Browser, ConsoleMessage, Locator, Page, async_playwright, expect

CHROMIUM = shutil.which("chromium-headless-shell")
PATIENCE = 15_000
"""Milliseconds: a busy machine is slow, not wrong."""
# Chrome's own lines about refused requests and connections, which tests bring about on purpose.
_EXPECTED = ("Failed to load resource", "WebSocket connection to", "net::ERR_")

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium-headless-shell on the PATH")

expect.set_options(timeout=PATIENCE)


@asynccontextmanager
async def open_browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        await browser.close()


@asynccontextmanager
async def open_page(browser: Browser, **options: Any) -> AsyncIterator[Page]:
    """A page that may not log an error of its own: a refused policy or a broken script fails the test."""
    context = await browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | options))
    page = await context.new_page()
    broken: list[str] = []

    def heard(line: ConsoleMessage) -> None:
        if line.type in ("error", "warning") and not any(text in line.text for text in _EXPECTED):
            broken.append(line.text)

    page.on("pageerror", lambda error: broken.append(str(error)))
    page.on("console", heard)
    yield page
    await context.close()
    assert broken == []


async def send(page: Page, prompt: str = "Hello", model: str = "scripted") -> None:
    await page.fill("#model", model)
    await page.fill("#prompt", prompt)
    await page.click("#send")


def answer(page: Page) -> Locator:
    """The text of the last answer."""
    return page.locator(".turn .text").last


async def turns(page: Page) -> list[dict[str, Any]]:
    """The conversation as the page keeps it: answers as the model wrote them, before they were drawn."""
    found: list[dict[str, Any]] = json.loads(await page.evaluate("sessionStorage.getItem('deltafan.turns') ?? '[]'"))
    return found


async def job_of(page: Page) -> str:
    """The job that the address names."""
    await page.wait_for_url("**/#job=*")
    return page.url.partition("#job=")[2]


async def is_done(page: Page, state: str = "done") -> None:
    await expect(page.locator("#state")).to_have_text(state)


async def events_shown(page: Page, lane: str) -> list[str]:
    """The ids of the events in a lane."""
    found: list[str] = await page.eval_on_selector_all(f"#{lane} .rows .id", "nodes => nodes.map(n => n.textContent)")
    return found
