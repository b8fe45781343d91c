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
from deltafan.devserver.provider.sent import MAX_ARGUMENTS_BYTES, MAX_CALLS, CallPiece, Recorded, read_event


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


def test_a_record_keeps_the_tool_calls_the_usage_and_the_end_that_were_sent() -> None:
    record = RequestRecord("a")
    record.sent([Piece(b"", calls=(CallPiece(0, "c1", "look"),)), Piece(b"", calls=(CallPiece(0, arguments='{"a'),))])
    record.sent([Piece(b"", calls=(CallPiece(0, arguments='":1}'),)), Piece(b"", calls=(CallPiece(0, "c2", "go"),))])
    assert record.usage is record.finish_reason is None
    record.sent([Piece(b"", finish_reason="tool_calls"), Piece(b"", usage={"total_tokens": 5})])
    told = record.to_dict()
    assert [(c["id"], c["name"], c["arguments"]) for c in told["tool_calls"]] == [
        ("c1", "look", '{"a":1}'),
        ("c2", "go", ""),
    ]
    assert (told["usage"], told["finish_reason"]) == ({"total_tokens": 5}, "tool_calls")


def test_a_records_tool_calls_are_bounded_and_their_lengths_are_not() -> None:
    record = RequestRecord("a")
    for number in range(MAX_CALLS + 5):
        record.sent([Piece(b"", calls=(CallPiece(number, f"c{number}", "look", "€" * 30_000),))])
    assert len(record.tool_calls) == MAX_CALLS
    assert record.tool_calls[0].arguments_length == 30_000
    assert record.tool_calls[0].arguments == "€" * (MAX_ARGUMENTS_BYTES // 3)


@pytest.mark.parametrize(
    ("event", "read"),
    [
        (b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n', Recorded("Hi")),
        (
            b'data: {"choices":[{"delta":{"tool_calls":[{"index":1,"id":"c","function":{"name":"f","arguments":"{}"}}]'
            b'},"finish_reason":"tool_calls"}]}\n\n',
            Recorded("", (CallPiece(1, "c", "f", "{}"),), None, "tool_calls"),
        ),
        (b'data: {"choices":[],"usage":{"total_tokens":3}}\n\n', Recorded(usage={"total_tokens": 3})),
        (b'data: {"type":"response.output_text.delta","delta":"Hi"}\n\n', Recorded("Hi")),
        (
            b'data: {"type":"response.output_item.added","output_index":1,"item":{"type":"function_call","call_id":"c",'
            b'"name":"f"}}\n\n',
            Recorded(calls=(CallPiece(1, "c", "f"),)),
        ),
        (
            b'data: {"type":"response.completed","response":{"status":"completed","usage":{"input_tokens":2,'
            b'"input_tokens_details":{"cached_tokens":1},"output_tokens":3,"total_tokens":5}}}\n\n',
            Recorded(
                usage={"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5, "cached_tokens": 1},
                finish_reason="completed",
            ),
        ),
        (b"data: [DONE]\n\n", Recorded()),
        (b"data: 1\n\n", Recorded()),
        (b'data: {"choices":1}\n\n', Recorded()),
        (b": comment\n\n", Recorded()),
    ],
)
def test_what_a_recorded_event_sends_is_read_and_nonsense_is_nothing(event: bytes, read: Recorded) -> None:
    assert read_event(event) == read
