"""The worker's process is killed while the page looks on: real processes, as `deltafan serve` starts them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import Page, expect

from deltafan.broker.queue import AsyncQueue
from tests.browser.kit import answer, is_done, needs_browser, send, turns
from tests.e2e.cli_kit import line, running_cli
from tests.e2e.relay_kit import running_relay

pytestmark = needs_browser


@pytest.fixture
async def served() -> AsyncIterator[dict[str, Any]]:
    async with running_cli("serve", "--port", "0", "--json") as process:
        yield await line(process)


async def test_a_worker_killed_in_mid_stream_costs_nothing_and_the_page_says_what_happened(
    served: dict[str, Any], page: Page
) -> None:
    await page.goto(served["url"])
    await send(page, "Tell me", model="gpt-5-mini")
    await expect(answer(page)).to_contain_text("You wrote")
    await page.click("#kill")
    await expect(page.locator(".turn .note").first).to_contain_text("You killed the worker (process ")
    await expect(page.locator("#state")).to_have_text("waiting for another worker")
    await expect(page.locator("#attempt")).to_have_text("2", timeout=30_000)
    await expect(page.locator(".turn .notes").first).to_contain_text("Attempt 2: the answer begins anew.")
    await expect(page.locator("#state")).to_have_text("done", timeout=30_000)
    await expect(page.locator("#verdict")).to_have_attribute("data-equal", "true")
    text = (await turns(page))[-1]["text"]
    assert text.startswith("You wrote: “Tell me”.")
    assert text.count("You wrote") == 1
    await page.click("#kill")
    await expect(page.locator(".turn .note").last).to_contain_text("Nothing runs now")
    await is_done(page)


async def test_the_button_is_not_there_where_workers_may_not_be_killed(queue: AsyncQueue, page: Page) -> None:
    async with running_relay(queue) as relay:
        await page.goto(relay.url)
        await expect(page.locator("#kill")).to_be_hidden()
        assert (await page.request.post(f"{relay.url}/dev/kill-worker", data={"job": "0-x"})).status == 404
    async with running_relay(queue, dev_tools=True, api_keys=("some-key-123",)) as relay:
        await page.goto(relay.url)
        await expect(page.locator("#kill")).to_be_hidden()
        headers = {"Authorization": "Bearer some-key-123"}
        answered = await page.request.post(f"{relay.url}/dev/kill-worker", data={"job": "0-x"}, headers=headers)
        assert answered.status == 404
