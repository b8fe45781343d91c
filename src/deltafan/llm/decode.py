"""Chat-completion chunks to events, one chunk at a time.

Providers differ from OpenAI's reference in small ways; each that is met is handled where its field is read. Unknown
fields are ignored. A chunk that is not of the shape at all is an error, for text that may be missing must not pass as
complete.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

from deltafan.events import Delta, FinishReason, ReasoningDelta, RefusalDelta, TextDelta
from deltafan.llm.failures import malformed
from deltafan.llm.finish import finish_reason
from deltafan.llm.toolcalls import MAX_INDEX, ToolCalls

_REASONING_NAMES = ("reasoning_content", "reasoning", "thinking")


def parse_json(data: bytes, what: str = "a chunk") -> Any:
    """The value of one `data:` field, or of a body.

    Invalid UTF-8 and lone surrogates, which orjson refuses, become U+FFFD: half an emoji must not cost an answer.

    :raises CompletionError: `malformed_stream`: it is not JSON.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass
    try:
        # A surrogate pair written as two escapes is joined by the parser; only lone ones are left to be replaced.
        return _replace_surrogates(json.loads(data.decode("utf-8", "replace")))
    except (ValueError, RecursionError):
        raise malformed(f"{what} is not JSON") from None


def _replace_surrogates(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        case list():
            return [_replace_surrogates(item) for item in value]
        case dict():
            return {key: _replace_surrogates(item) for key, item in value.items()}
    return value


class ChunkDecoder:
    """One completion's chunks, or all of it at once."""

    __slots__ = ("_finish", "_tool_calls", "error", "head", "output_chars", "usage")

    def __init__(self) -> None:
        self.usage: dict[str, Any] | None = None
        """The last usage object that was seen, wherever it was."""
        self.error: Any = None
        """The provider's error object, once it has sent one."""
        self.head: dict[str, Any] = {}
        """What names model and id, where it is not in every chunk."""
        self.output_chars = 0
        """Characters of text, reasoning, refusal and arguments in all choices: what an estimate of usage counts."""
        self._finish: dict[int, FinishReason | None] = {}
        self._tool_calls: dict[int, ToolCalls] = {}

    @property
    def begun(self) -> bool:
        """A choice has been seen."""
        return bool(self._finish)

    @property
    def finished(self) -> bool:
        """Every choice that was begun has named its finish reason."""
        return bool(self._finish) and None not in self._finish.values()

    @property
    def finish_reason(self) -> FinishReason:
        """The finish reason of choice 0, or of the first there is. `stop` if none was named."""
        return self._finish.get(min(self._finish, default=0)) or "stop"

    @property
    def finish_reasons(self) -> dict[int, FinishReason]:
        """Of each choice that has begun. `stop` where none was named."""
        return {index: reason or "stop" for index, reason in self._finish.items()}

    def decode(self, chunk: Any) -> list[Delta]:
        """The deltas of one chunk. Usage, errors and finish reasons are left in the attributes.

        :raises CompletionError: `malformed_stream`.
        """
        if type(chunk) is not dict:
            raise malformed("a chunk is not an object")
        out: list[Delta] = []
        if chunk.get("error"):
            self.error = chunk["error"]
            return out
        choices = chunk.get("choices")
        if choices:
            if type(choices) is not list:
                raise malformed("`choices` is not a list")
            for position, choice in enumerate(choices):
                self._choice(choice, position, out)
        elif chunk.get("object") == "error":
            self.error = chunk
        usage = chunk.get("usage")
        if usage is None and "x_groq" in chunk:
            x_groq = chunk["x_groq"]
            usage = x_groq.get("usage") if type(x_groq) is dict else None
        if usage and type(usage) is dict:
            self.usage = usage
        return out

    def whole(self, completion: Any) -> list[Delta]:
        """The deltas of a completion that was not streamed.

        :raises CompletionError: `malformed_stream`.
        """
        if type(completion) is not dict:
            raise malformed("the answer is not an object")
        self.head = completion
        choices = completion.get("choices")
        if type(choices) is list:
            choices = [
                {**choice, "delta": choice.get("message")} if type(choice) is dict else choice for choice in choices
            ]
        out = self.decode({**completion, "choices": choices})
        if not self.begun and self.error is None:
            raise malformed("the answer has no choices")
        return out

    def _choice(self, choice: Any, position: int, out: list[Delta]) -> None:
        if type(choice) is not dict:
            raise malformed("a choice is not an object")
        index = choice.get("index")
        if index is None:
            index = position
        elif type(index) is not int or not 0 <= index <= MAX_INDEX:
            raise malformed("a choice's `index` is not a whole number")
        if index not in self._finish:
            self._finish[index] = None
        delta = choice.get("delta")
        if delta:
            if type(delta) is not dict:
                raise malformed("a `delta` is not an object")
            self._delta(delta, index, out)
        reason = choice.get("finish_reason")
        if reason and type(reason) is str:
            self._finish[index] = finish_reason(reason)
            if self._finish[index] == "error":
                self.error = choice.get("error") or {"message": f"the provider broke the answer off: {reason}"}
        usage = choice.get("usage")  # Moonshot puts it here
        if usage and type(usage) is dict:
            self.usage = usage

    def _delta(self, delta: dict[str, Any], choice: int, out: list[Delta]) -> None:
        get = delta.get
        content = get("content")
        if type(content) is str:
            if content and len(delta) == 1:  # most chunks of most providers
                self.output_chars += len(content)
                out.append(TextDelta(content, choice))
                return
        elif content is not None and type(content) is not list:
            raise malformed("`content` is neither text nor a list of parts")
        reasoning = _reasoning(delta)
        if reasoning:
            self.output_chars += len(reasoning)
            out.append(ReasoningDelta(reasoning, choice))
        if content:
            if type(content) is str:
                self.output_chars += len(content)
                out.append(TextDelta(content, choice))
            elif type(content) is list:
                self._parts(content, choice, out, skip_thinking=bool(reasoning))
        refusal = get("refusal")
        if refusal and type(refusal) is str:
            self.output_chars += len(refusal)
            out.append(RefusalDelta(refusal, choice))
        if get("tool_calls") or get("function_call"):
            calls = self._tool_calls.get(choice)
            if calls is None:
                calls = self._tool_calls[choice] = ToolCalls(choice)
            for call in calls.decode(delta):
                self.output_chars += len(call.arguments)
                out.append(call)

    def _parts(self, parts: list[Any], choice: int, out: list[Delta], *, skip_thinking: bool) -> None:
        """Content as a list, as Mistral sends it: text parts, and thinking parts that hold text parts."""
        for part in parts:
            if type(part) is not dict:
                raise malformed("a part of `content` is not an object")
            if part.get("type") == "thinking":
                text = "" if skip_thinking else _text(part.get("thinking"))
                event: type[TextDelta | ReasoningDelta] = ReasoningDelta
            else:
                text = _text(part.get("text"))
                event = TextDelta
            if text:
                self.output_chars += len(text)
                out.append(event(text, choice))


def _reasoning(delta: dict[str, Any]) -> str:
    """The reasoning text, from the first of its names that has any: two names carry the same text, not more of it."""
    for name in _REASONING_NAMES:
        if name in delta:
            text = _text(delta[name])
            if text:
                return text
    if "reasoning_details" in delta:
        return _text(delta["reasoning_details"])
    return ""


def _text(value: Any) -> str:
    """Text, or the text in a list of parts. What is neither (encrypted reasoning, for one) has none."""
    if type(value) is str:
        return value
    if type(value) is list:
        return "".join(_part_text(part) for part in value)
    return ""


def _part_text(part: Any) -> str:
    if type(part) is not dict:
        return ""
    text = part.get("text") or part.get("summary")
    return text if type(text) is str else ""
