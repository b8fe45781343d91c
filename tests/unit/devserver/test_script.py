from __future__ import annotations

from pathlib import Path

import pytest

from deltafan.devserver.provider import (
    Echo,
    Fault,
    Replay,
    Script,
    Text,
    ToolCall,
    Written,
    parse_tool_calls,
    read_source,
    replay,
)
from deltafan.devserver.provider.overrides import (
    header_name,
    header_options,
    metadata_name,
    metadata_options,
    override,
)
from deltafan.devserver.provider.source import MAX_TEXT
from deltafan.errors import ValidationError


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"rate": -1}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"rate": "20"}, "rate"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"chunk_size": 2.5}, "chunk_size"),
        ({"first_token_delay": -0.1}, "first_token_delay"),
        ({"first_token_delay": 1e9}, "first_token_delay"),
        ({"tool_calls": (ToolCall(""),)}, "tool_calls"),
        ({"finish_reason": ""}, "finish_reason"),
        ({"require_key": ""}, "require_key"),
        ({"reasoning": "\ud800"}, "reasoning"),
        ({"source": Replay((b"data: x\n\n",)), "reasoning": "x"}, "reasoning"),
        ({"source": Replay((b"data: x\n\n",)), "faults": (Fault("no_usage"),)}, "faults"),
    ],
)
def test_a_script_names_the_field_that_is_wrong(values: dict[str, object], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Script(**values)  # type: ignore[arg-type]
    assert [wrong.field for wrong in caught.value.fields] == [field]


def test_a_script_names_all_fields_that_are_wrong() -> None:
    with pytest.raises(ValidationError) as caught:
        Script(rate=-1, chunk_size=0)
    assert [wrong.field for wrong in caught.value.fields] == ["rate", "chunk_size"]


def test_each_source_is_read(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes("héllo\r\n".encode())
    (tmp_path / "sse").write_bytes(b"data: 1\n\ndata: 2\n\n")
    assert read_source() == Written()
    assert read_source(text="") == Text("")
    assert read_source(text_file=tmp_path / "text") == Text("héllo\r\n")
    assert read_source(replay_file=tmp_path / "sse") == Replay((b"data: 1\n\n", b"data: 2\n\n"))
    assert read_source(echo=True) == Echo()


def test_a_source_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "long").write_bytes(b"a" * (MAX_TEXT + 1))
    for options, field, rule in (
        ({"text": "a", "echo": True}, "echo", "cannot be combined with text"),
        ({"text_file": tmp_path / "none"}, "text_file", "cannot be read: No such file"),
        ({"text_file": tmp_path / "binary"}, "text_file", "must be UTF-8"),
        ({"text_file": tmp_path / "long"}, "text_file", "at most"),
        ({"replay_file": tmp_path / "empty"}, "replay", "holds no events"),
        ({"replay_file": tmp_path}, "replay", "cannot be read"),
    ):
        with pytest.raises(ValidationError) as caught:
            read_source(**options)  # type: ignore[arg-type]
        assert caught.value.fields[0].field == field
        assert rule in caught.value.fields[0].message


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_recording_is_cut_between_events_whatever_ends_its_lines(end: bytes) -> None:
    events = [
        b": note" + end + end,
        b"event: a" + end + b"data: 1" + end + end,
        b"data: 2" + end + end + end,
        b"data: 3",
    ]
    assert replay(b"".join(events)).events == tuple(events)


def test_tool_calls_are_read_from_json() -> None:
    text = '[{"name": "a", "arguments": {"x": "é"}}, {"name": "b", "arguments": "{bro"}, {"name": "c"}]'
    assert parse_tool_calls(text) == (ToolCall("a", '{"x":"é"}'), ToolCall("b", "{bro"), ToolCall("c", "{}"))


@pytest.mark.parametrize(
    "text", ["{", "{}", "[1]", '[{"arguments": {}}]', '[{"name": "a", "arguments": 1}]', '[{"nam": 1}]']
)
def test_wrong_tool_calls_are_refused(text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse_tool_calls(text)
    assert caught.value.fields[0].field == "tool_calls"


def test_every_option_is_read_from_headers() -> None:
    headers = [
        ("X-Provider-Text", "a%20%C3%A9%0A"),
        ("x-provider-rate", "2.5"),
        ("X-Provider-Chunk-Size", "7"),
        ("X-Provider-First-Token-Delay", "0.5"),
        ("X-Provider-Fault", "crlf, no_done"),
        ("X-Provider-Fault", "cut=2"),
        ("X-Provider-Tool-Calls", '[{"name":"f"}]'),
        ("X-Provider-Reasoning", "why"),
        ("X-Provider-Refusal", "no"),
        ("X-Provider-Finish-Reason", "length"),
        ("X-Provider-Usage", "off"),
        ("X-Provider-Key", "k"),
        ("Authorization", "Bearer x"),
    ]
    assert override(Script(), header_options(headers), header_name) == Script(
        source=Text("a é\n"),
        rate=2.5,
        chunk_size=7,
        first_token_delay=0.5,
        faults=(Fault("crlf"), Fault("no_done"), Fault("cut", 2)),
        tool_calls=(ToolCall("f"),),
        reasoning="why",
        refusal="no",
        finish_reason="length",
        usage=False,
    )


def test_metadata_holds_the_same_options_beside_keys_of_its_own() -> None:
    options = metadata_options({"rate": "20", "chunk-size": "3", "user": "u-1", "order": 7})
    assert override(Script(), options, metadata_name) == Script(rate=20, chunk_size=3)


def test_echo_can_be_switched_on_and_off() -> None:
    assert override(Script(), {"echo": "on"}, header_name).source == Echo()
    assert override(Script(source=Echo()), {"echo": "off"}, header_name).source == Written()
    assert override(Script(source=Text("a")), {"echo": "off"}, header_name).source == Text("a")


def test_an_empty_fault_header_takes_the_scripts_faults_away() -> None:
    assert (
        override(Script(faults=(Fault("crlf"),)), header_options([("X-Provider-Fault", "")]), header_name) == Script()
    )
