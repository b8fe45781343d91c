from __future__ import annotations

import asyncio

import pytest

from deltafan.devserver.provider.chunks import Piece
from deltafan.devserver.provider.journal import (
    FINISHED,
    MAX_PROMPTS,
    MAX_RECORDS,
    MAX_TEXT_BYTES,
    Journal,
    RequestRecord,
    without_secrets,
)


def test_the_journal_keeps_the_most_recent_records() -> None:
    journal = Journal()
    for number in range(MAX_RECORDS + 5):
        journal.add(RequestRecord(str(number)))
    assert len(journal.records) == MAX_RECORDS
    assert journal.records[0].id == "5"


def test_a_records_text_is_bounded_and_its_length_is_not() -> None:
    record = RequestRecord("a")
    for _ in range(3):
        record.sent([Piece(b"", True, "€" * 10_000)])
    assert record.text_length == 30_000
    assert record.text == "€" * (MAX_TEXT_BYTES // 3)
    assert record.chunks == 3


def test_counts_are_bounded_by_forgetting_the_prompt_unused_for_longest() -> None:
    journal = Journal()
    journal.count("old")
    for number in range(MAX_PROMPTS):
        journal.count(str(number))
    assert journal.count(str(MAX_PROMPTS - 1)) == 2
    assert journal.count("old") == 1


def test_params_are_kept_without_secrets_and_without_bulk() -> None:
    params = {"api_key": "sk-1", "temperature": 1, "tools": [{"headers": {"Authorization": "sk-2"}}], "x": "a" * 9999}
    kept = without_secrets(params)
    assert "sk-" not in str(kept)
    assert kept["temperature"] == 1
    assert kept["x"] == "(10001 bytes)"


async def test_until_returns_once_the_records_fulfil_it() -> None:
    journal, record = Journal(), RequestRecord("a")
    journal.add(record)
    waiting = asyncio.create_task(journal.until(lambda records: records[0].outcome == FINISHED))
    await asyncio.sleep(0)
    assert not waiting.done()
    journal.end(record, FINISHED)
    await waiting


async def test_until_gives_up() -> None:
    with pytest.raises(TimeoutError):
        await Journal().until(lambda records: bool(records), timeout=0.01)
