"""A request, validated, and what its messages say. The other interfaces' requests are read as chat completions'."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from deltafan.devserver.provider.params import json_object, model_of, typed, whole, wrong

Message = Mapping[str, Any]

MAX_CHOICES = 128
"""OpenAI's bound for `n`."""
MAX_STOPS = 4
"""OpenAI's bound for `stop`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """The parts of a request that change the answer; `params` is all of it but the messages."""

    model: str
    messages: tuple[Message, ...]
    stream: bool
    choices: int
    token_limit: int | None
    stop: tuple[str, ...]
    include_usage: bool
    metadata: Mapping[str, object]
    params: Mapping[str, object]

    @property
    def prefill(self) -> str:
        """The beginning of the answer, where the last message is the assistant's and has a text."""
        last = self.messages[-1]
        return message_text(last) if last["role"] == "assistant" else ""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages without the prefill."""
        return self.messages[:-1] if self.prefill else self.messages

    @property
    def answers_tool(self) -> bool:
        return bool(self.prompt) and self.prompt[-1]["role"] == "tool"

    @property
    def last_user_text(self) -> str:
        return next((message_text(m) for m in reversed(self.messages) if m["role"] == "user"), "")

    @property
    def prompt_words(self) -> int:
        return sum(len(message_text(message).split()) for message in self.messages)


def parse_chat_request(body: bytes) -> ChatRequest:
    """:raises ApiError: 400 that names the parameter and its rule."""
    params = json_object(body)
    options = typed(params, "stream_options", dict, "an object") or {}
    return ChatRequest(
        model=model_of(params),
        messages=_messages(params.get("messages")),
        stream=typed(params, "stream", bool, "true or false") or False,
        choices=whole(params, "n", 1, MAX_CHOICES) or 1,
        token_limit=whole(params, "max_completion_tokens", 1) or whole(params, "max_tokens", 1),
        stop=_stop(params.get("stop")),
        include_usage=typed(options, "include_usage", bool, "true or false", "stream_options.") or False,
        metadata=typed(params, "metadata", dict, "an object") or {},
        params={name: value for name, value in params.items() if name != "messages"},
    )


def message_text(message: Message) -> str:
    """The text of a message, its text parts joined."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content or () if part.get("type") == "text")


def digest(messages: Iterable[Message]) -> str:
    """A short stable hash of messages."""
    canonical = orjson.dumps(list(messages), option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(canonical).hexdigest()[:16]


def _messages(messages: object) -> tuple[Message, ...]:
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", "must be a list with at least one message")
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise wrong(where, "must be an object with a role")
        _check_content(message.get("content"), f"{where}.content")
    return tuple(messages)


def _check_content(content: object, where: str) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise wrong(where, "must be a string, a list of parts or null")
    for index, part in enumerate(content):
        if part.get("type") == "text" and not isinstance(part.get("text"), str):
            raise wrong(f"{where}[{index}].text", "must be a string")


def _stop(stop: object) -> tuple[str, ...]:
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise wrong("stop", f"must be a string, or a list of at most {MAX_STOPS} strings, none of them empty")
    return tuple(stops)
