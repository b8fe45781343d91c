from __future__ import annotations

from typing import Any

import orjson
import pytest

from deltafan.errors import CompletionError
from deltafan.events import Delta, ReasoningDelta, RefusalDelta, TextDelta
from deltafan.llm.decode import ChunkDecoder, parse_json
from deltafan.llm.finish import FINISH_REASONS, finish_reason
from tests.unit.llm.server import delta, text


def decoded(*chunks: Any) -> list[Delta]:
    decoder = ChunkDecoder()
    return [event for chunk in chunks for event in decoder.decode(chunk)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"content": "a"}, [TextDelta("a")]),
        ({"role": "assistant", "content": ""}, []),
        ({"role": "assistant", "content": None}, []),
        ({"role": "assistant", "content": "a", "token_id": 5, "unknown": {"x": 1}}, [TextDelta("a")]),
        ({"content": "\0\u2028"}, [TextDelta("\0\u2028")]),
        ({"content": None, "refusal": "no"}, [RefusalDelta("no")]),
        ({"content": None, "reasoning_content": "r"}, [ReasoningDelta("r")]),
        ({"reasoning": "r"}, [ReasoningDelta("r")]),
        ({"thinking": "r"}, [ReasoningDelta("r")]),
        ({"reasoning": "r", "content": "a"}, [ReasoningDelta("r"), TextDelta("a")]),
        ({"reasoning_content": "", "reasoning": "r"}, [ReasoningDelta("r")]),
        ({"reasoning_content": "r", "reasoning": "r"}, [ReasoningDelta("r")]),
        ({"reasoning": "r", "reasoning_details": [{"type": "reasoning.text", "text": "r"}]}, [ReasoningDelta("r")]),
        ({"reasoning_details": [{"type": "reasoning.text", "text": "r"}]}, [ReasoningDelta("r")]),
        ({"reasoning_details": [{"type": "reasoning.summary", "summary": "r"}]}, [ReasoningDelta("r")]),
        ({"reasoning_details": [{"type": "reasoning.encrypted", "data": "xyz"}]}, []),
        ({"reasoning_details": [None, 7]}, []),
        ({"reasoning": {"effort": "high"}}, []),
        ({"content": [{"type": "text", "text": "a"}]}, [TextDelta("a")]),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "r"}]},
                    {"type": "text", "text": "a"},
                ]
            },
            [ReasoningDelta("r"), TextDelta("a")],
        ),
        ({"content": [{"type": "thinking", "thinking": "r"}], "reasoning_content": "r"}, [ReasoningDelta("r")]),
        ({"content": [{"type": "reference", "reference_ids": [1]}]}, []),
    ],
)
def test_the_fields_of_a_delta(fields: dict[str, Any], expected: list[Delta]) -> None:
    assert decoded(delta(**fields)) == expected


@pytest.mark.parametrize(
    "chunk",
    [
        {},
        {"choices": None},
        {"choices": []},
        {"choices": [{"index": 0, "delta": None, "finish_reason": None}]},
        {"choices": [{"index": 0, "text": "x"}]},
        {"choices": [], "prompt_filter_results": [{"prompt_index": 0}]},
        {"error": None, "choices": []},
    ],
)
def test_chunks_without_deltas_yield_nothing(chunk: Any) -> None:
    assert decoded(chunk) == []


@pytest.mark.parametrize(
    "chunk",
    [
        [],
        "text",
        None,
        7,
        {"choices": {"0": {}}},
        {"choices": ["text"]},
        {"choices": [{"index": "0", "delta": {}}]},
        {"choices": [{"index": -1, "delta": {}}]},
        {"choices": [{"index": 0, "delta": "text"}]},
        delta(content=5),
        delta(content={"text": "a"}),
        delta(content=["a"]),
        delta(tool_calls={"index": 0}),
        delta(tool_calls=["x"]),
        delta(tool_calls=[{"index": "0"}]),
        delta(tool_calls=[{"index": 0, "function": "f"}]),
    ],
)
def test_what_is_not_a_chunk_is_a_malformed_stream(chunk: Any) -> None:
    with pytest.raises(CompletionError) as caught:
        decoded(chunk)
    assert caught.value.code == "malformed_stream"
    assert caught.value.retryable


def test_choices_are_told_apart() -> None:
    chunk = {
        "choices": [
            {"index": 1, "delta": {"content": "b"}},
            {"index": 0, "delta": {"content": "a"}},
        ]
    }
    assert decoded(chunk) == [TextDelta("b", choice=1), TextDelta("a", choice=0)]
    assert decoded({"choices": [{"delta": {"content": "a"}}, {"delta": {"content": "b"}}]}) == [
        TextDelta("a"),
        TextDelta("b", choice=1),
    ]


def test_several_choices_are_finished_when_all_are_and_choice_0_says_why() -> None:
    decoder = ChunkDecoder()
    decoder.decode(delta(content="b", index=1))
    decoder.decode(delta("length", index=0))
    assert not decoder.finished
    decoder.decode(delta("stop", index=1))
    assert decoder.finished
    assert decoder.finish_reason == "length"


@pytest.mark.parametrize(
    ("chunks", "usage"),
    [
        ([{"choices": [], "usage": {"prompt_tokens": 1}}], {"prompt_tokens": 1}),
        ([{"choices": [], "usage": {"prompt_tokens": 1}}, {"usage": {"prompt_tokens": 2}}], {"prompt_tokens": 2}),
        ([{"usage": {"prompt_tokens": 1}}, {"usage": None, **text("x")}], {"prompt_tokens": 1}),
        ([{"usage": {"prompt_tokens": 1}}, {"usage": {}}], {"prompt_tokens": 1}),
        ([{**text("x"), "x_groq": {"usage": {"prompt_tokens": 3}}}], {"prompt_tokens": 3}),
        (
            [{**text("x"), "usage": {"prompt_tokens": 4}, "x_groq": {"usage": {"prompt_tokens": 3}}}],
            {"prompt_tokens": 4},
        ),
        ([{"x_groq": {"id": "req_1"}}, {"x_groq": None}, {"usage": "free"}], None),
        ([{"choices": [{"index": 0, "delta": {}, "usage": {"prompt_tokens": 5}}]}], {"prompt_tokens": 5}),
    ],
)
def test_usage_is_the_last_that_was_sent_wherever_it_was(chunks: list[Any], usage: Any) -> None:
    decoder = ChunkDecoder()
    for chunk in chunks:
        decoder.decode(chunk)
    assert decoder.usage == usage


@pytest.mark.parametrize("chunk", [{"error": {"message": "x"}}, {"error": "x"}, {"object": "error", "message": "x"}])
def test_an_error_object_is_kept_for_the_reader(chunk: Any) -> None:
    decoder = ChunkDecoder()
    assert decoder.decode(chunk) == []
    assert decoder.error


@pytest.mark.parametrize("word", ["error", "abort", "insufficient_system_resource", "network_error"])
def test_a_finish_reason_that_means_failure_is_an_error(word: str) -> None:
    decoder = ChunkDecoder()
    decoder.decode(delta(word))
    assert word in decoder.error["message"]


def test_a_choice_may_carry_the_error() -> None:
    decoder = ChunkDecoder()
    error = {"code": 502, "message": "upstream"}
    decoder.decode({"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error", "error": error}]})
    assert decoder.error == error


@pytest.mark.parametrize(
    ("word", "ours"),
    [
        ("stop", "stop"),
        ("end_turn", "stop"),
        ("eos", "stop"),
        ("STOP", "stop"),
        ("length", "length"),
        ("max_tokens", "length"),
        ("MAX_TOKENS", "length"),
        ("model_length", "length"),
        ("tool_calls", "tool_calls"),
        ("tool_use", "tool_calls"),
        ("function_call", "tool_calls"),
        ("content_filter", "content_filter"),
        ("SAFETY", "content_filter"),
        ("never heard of", "stop"),
    ],
)
def test_finish_reasons_of_all_dialects_become_ours(word: str, ours: str) -> None:
    assert finish_reason(word) == ours


def test_no_word_stands_for_two_reasons() -> None:
    assert all(word == word.lower() for word in FINISH_REASONS)


def test_output_characters_count_everything_the_model_wrote() -> None:
    decoder = ChunkDecoder()
    for fields in (
        {"content": "12"},
        {"reasoning": "345", "content": "6"},
        {"refusal": "78"},
        {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}]},
        {"content": [{"type": "text", "text": "é"}]},
    ):
        decoder.decode(delta(**fields))
    assert decoder.output_chars == 2 + 4 + 2 + 2 + 1


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b'{"a":"b"}', {"a": "b"}),
        (rb'"\ud83c\udf88"', "🎈"),
        (rb'["\ud83c",{"k":"\udf88x"}]', ["�", {"k": "�x"}]),
        (b'"\xff"', "�"),
        (b'"a\xe2\x80\xa8b"', "a\u2028b"),
    ],
)
def test_json_with_broken_text_is_read_as_text_that_can_be_written_again(data: bytes, value: Any) -> None:
    assert parse_json(data) == value
    assert orjson.loads(orjson.dumps(value)) == value


@pytest.mark.parametrize("data", [b"{", b"nonsense", b'{"a":', b"[" * 5000, b""])
def test_what_is_not_json_is_a_malformed_stream(data: bytes) -> None:
    with pytest.raises(CompletionError) as caught:
        parse_json(data)
    assert caught.value.code == "malformed_stream"
