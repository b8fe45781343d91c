"""`page.lua`: entries as many as fit, one at least, and whether the log ends with them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from deltafan.broker import log
from deltafan.broker.log import Page, read_page
from deltafan.events import EventId
from deltafan.settings import RedisSettings
from tests.contract.lua_kit import Lab, Work, open_lab


@pytest_asyncio.fixture
async def lab(redis_settings: RedisSettings) -> AsyncIterator[Lab]:
    async with open_lab(redis_settings) as opened:
        yield opened


@pytest_asyncio.fixture
async def work(lab: Lab) -> Work:
    worker = await lab.worker()
    await lab.enqueue()
    return await worker.begin()


def _ids(page: Page) -> list[str]:
    return [str(entry.id) for entry in page.entries]


async def test_a_log_that_is_not_there_has_ended(lab: Lab) -> None:
    assert await read_page(lab.redis, "0-none", None) == Page([], ended=True)


async def test_what_follows_an_id_comes_in_order_and_with_its_end(lab: Lab, work: Work) -> None:
    for text in ("a", "b", "c"):
        await work.say(text)
    assert _ids(await read_page(lab.redis, work.id, None)) == ["1-0", "1-1", "1-2", "1-3"]
    page = await read_page(lab.redis, work.id, EventId(1, 1))
    assert (_ids(page), page.ended) == (["1-2", "1-3"], True)
    assert [entry.type for entry in page.entries] == ["text_delta"] * 2
    assert await read_page(lab.redis, work.id, EventId(1, 3)) == Page([], ended=True)


@pytest.mark.parametrize("count", [1, 2, 49, 50, 51, 100, 119])
async def test_a_page_has_no_more_entries_than_were_asked_for_and_pages_join_without_a_seam(
    lab: Lab, work: Work, count: int
) -> None:
    await work.append(*(f"{n} " for n in range(119)))
    found: list[str] = []
    after: EventId | None = None
    while True:
        page = await read_page(lab.redis, work.id, after, count)
        assert len(page.entries) <= count
        found += _ids(page)
        if page.ended:
            break
        assert len(page.entries) == count
        after = page.entries[-1].id
    assert found == [f"1-{seq}" for seq in range(120)]


async def test_a_page_has_no_more_bytes_than_it_may_but_one_entry_at_least(
    lab: Lab, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "PAGE_BYTES", 10_000)
    await work.append(*["x" * 3_000] * 4, "y" * 30_000, "z")
    pages = [page async for page in log.read_all(lab.redis, work.id)]
    assert [[str(entry.id) for entry in page] for page in pages] == [
        ["1-0", "1-1", "1-2", "1-3"],
        ["1-4"],
        ["1-5"],
        ["1-6"],
    ]
