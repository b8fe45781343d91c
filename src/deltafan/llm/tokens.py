"""How many tokens a prompt takes: exact for OpenAI's models, without a network; for others an estimate."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from deltafan.errors import CompletionError
from deltafan.llm import encodings
from deltafan.llm.checks import check_objects
from deltafan.llm.providers import split_model
from deltafan.llm.usage import TOKENS_PER_IMAGE

BYTES_PER_TOKEN: Final = 4
"""A rule of thumb over languages: four letters of English in ASCII, one or two characters of other scripts in UTF-8."""

_PER_MESSAGE: Final = 3
_PER_NAME: Final = 1
_PER_REPLY: Final = 3
_PER_REPLY_REASONING: Final = 2
_REASONING: Final = re.compile(r"(?:o\d|gpt-5)")
_MARKUP_BOUND: Final = 16
"""More than the markup around a message, a part, a tool or a property of a tool takes."""

_TOOL, _TOOLS_END, _PROPERTIES, _PROPERTY, _ENUM, _ENUM_ITEM = 7, 12, 3, 3, -3, 3
_TOOL_BEFORE_4O: Final = 10
_CALL: Final = 8
"""What is around the name and the arguments of a call, by recorded answers; parallel calls take more."""
_NOT_SENT: Final = frozenset({"tool_call_id"})
"""Fields of a message that the model does not see."""


class TokenCount(int):
    """A number of tokens, and whether it is `exact` or an estimate."""

    exact: bool

    def __new__(cls, tokens: int, *, exact: bool = True) -> TokenCount:
        count = super().__new__(cls, tokens)
        count.exact = exact
        return count

    def __repr__(self) -> str:
        return f"{int(self)}" if self.exact else f"{int(self)} (estimated)"


def count_tokens(
    prompt: str | Sequence[Mapping[str, Any]],
    model: str,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
) -> TokenCount:
    """Tokens of a text, or of the messages of a chat with the tools that go with them.

    For OpenAI's models text is counted by their own tokenizer, and the markup around messages by the rules of OpenAI's
    cookbook ("How to count tokens with tiktoken"): `exact`. What the cookbook gives no exact rule for makes it an
    estimate: tools, calls of tools, images (765 tokens each), audio and files. The tokenizers of other models are not
    at hand: their tokens are estimated by OpenAI's newest, o200k; theirs may come to a quarter more or less.

    The first call loads the tokenizer: 0.25 s and 75 MB.

    :param model: as `Request.model` names it.
    :raises ValidationError: an argument is not what it must be.
    :raises CompletionError: `bad_request`: JSON cannot carry it.
    """
    if not isinstance(prompt, str):
        check_objects("prompt", prompt)
    check_objects("tools", tools)
    provider, name = split_model(model)
    return count_of(prompt, provider, name, tools=tools)


def count_of(
    prompt: str | Sequence[Mapping[str, Any]], provider: str, name: str, *, tools: Sequence[Mapping[str, Any]] = ()
) -> TokenCount:
    """The same for a provider and its own name of the model."""
    own = _encoding_of(provider, name)
    counter = _Counter(own or encodings.O200K, name.removeprefix("openai/"))
    if isinstance(prompt, str):
        return TokenCount(counter.text(prompt), exact=own is not None)
    tokens = counter.messages(prompt) + counter.tools(tools)
    return TokenCount(tokens, exact=own is not None and counter.exact)


def rough_count(prompt: str | Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> tuple[int, int]:
    """An estimate (a token for every four bytes), and what the tokens cannot exceed: quick, and without a tokenizer.

    The bound rests on that every token stands for a byte at least. It does not hold for images, audio and files, for
    which it has the estimate.
    """
    messages = [{"content": prompt}] if isinstance(prompt, str) else prompt
    size = parts = images = 0
    for kind, value in _pieces(messages, tools):
        parts += 1
        if kind == "image":
            images += 1
        else:
            size += len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    fixed = images * TOKENS_PER_IMAGE
    estimate = fixed + parts + _PER_MESSAGE * len(messages) + -(-size // BYTES_PER_TOKEN)
    return estimate, fixed + size + _MARKUP_BOUND * (len(messages) + parts + 1)


def _encoding_of(provider: str, name: str) -> str | None:
    if provider in ("openai", "azure"):
        return encodings.encoding_of(name)
    if name.startswith("openai/"):  # OpenRouter and others that serve OpenAI's models
        return encodings.encoding_of(name.removeprefix("openai/"))
    return None


@dataclass(slots=True)
class _Counter:
    encoding: str
    model: str
    exact: bool = True

    def text(self, text: str) -> int:
        return encodings.count(text, self.encoding)

    def messages(self, messages: Sequence[Mapping[str, Any]]) -> int:
        tokens = _PER_REPLY_REASONING if _REASONING.match(self.model) else _PER_REPLY
        for message in messages:
            tokens += _PER_MESSAGE
            for field, value in message.items():
                if field in _NOT_SENT:
                    continue
                if isinstance(value, str):
                    tokens += self.text(value) + (_PER_NAME if field == "name" else 0)
                elif field == "content":
                    tokens += sum(self.part(part) for part in _items(value))
                elif field == "tool_calls":
                    tokens += sum(self.call(call) for call in _items(value))
                elif value is not None:
                    self.exact = False
                    tokens += self.text(_as_json(value))
        return tokens

    def call(self, call: Mapping[str, Any]) -> int:
        self.exact = False
        function = call.get("function")
        if not isinstance(function, Mapping):
            return self.text(_as_json(call))
        return _CALL + self.text(str(function.get("name", ""))) + self.text(str(function.get("arguments", "")))

    def part(self, part: Mapping[str, Any]) -> int:
        """A piece of a message's content."""
        kind, value = _part(part)
        if kind == "image":
            self.exact = False
            return TOKENS_PER_IMAGE
        if kind == "other":
            self.exact = False
        return self.text(value)

    def tools(self, tools: Sequence[Mapping[str, Any]]) -> int:
        if not tools:
            return 0
        self.exact = False
        return sum(self.tool(tool) for tool in tools) + _TOOLS_END

    def tool(self, tool: Mapping[str, Any]) -> int:
        function = tool.get("function", tool)
        if not isinstance(function, Mapping) or "name" not in function:
            return self.text(_as_json(tool))
        tokens = _TOOL if self.encoding == encodings.O200K else _TOOL_BEFORE_4O
        tokens += self.text(f"{function.get('name')}:{_sentence(function.get('description'))}")
        return tokens + self.schema(function.get("parameters"))

    def schema(self, schema: Any) -> int:
        """The properties of a JSON schema, and of the schemas inside it."""
        if not isinstance(schema, Mapping):
            return 0
        tokens = 0
        properties = schema.get("properties")
        if isinstance(properties, Mapping) and properties:
            tokens += _PROPERTIES
            for name, value in properties.items():
                value = value if isinstance(value, Mapping) else {}
                line = f"{name}:{value.get('type', '')}:{_sentence(value.get('description'))}"
                tokens += _PROPERTY + self.text(line) + self.schema(value)
        enum = schema.get("enum")
        if isinstance(enum, (list, tuple)):
            tokens += _ENUM + sum(_ENUM_ITEM + self.text(str(item)) for item in enum)
        nested = [schema.get("items"), *_values(schema.get("$defs")), *_items(schema.get("anyOf"))]
        return tokens + sum(self.schema(inner) for inner in nested)


def _pieces(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for message in messages:
        for field, value in message.items():
            if isinstance(value, str):
                yield "text", value
            elif field == "content":
                yield from (_part(part) for part in _items(value))
            elif value is not None:
                yield "other", _as_json(value)
    for tool in tools:
        # Properties have markup of their own, which their quotes and braces in JSON more than make up for.
        yield "other", _as_json(tool)


def _part(part: Mapping[str, Any]) -> tuple[str, str]:
    kind = part.get("type")
    if isinstance(kind, str) and "image" in kind:
        return "image", ""
    for field in ("text", "refusal"):
        if isinstance(part.get(field), str):
            return "text", part[field]
    if isinstance(kind, str) and ("audio" in kind or "file" in kind):
        return "image", ""  # the bytes in it say nothing about its tokens; nobody publishes a rule
    return "other", _as_json(part)


def _as_json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    except RecursionError:
        raise CompletionError("bad_request", "the request cannot be sent: it is nested too deeply") from None
    except (TypeError, ValueError) as error:  # it holds itself, or has keys that are no text
        raise CompletionError("bad_request", f"the request cannot be sent: {error}") from None


def _sentence(description: Any) -> str:
    return description.removesuffix(".") if isinstance(description, str) else ""


def _items(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, (list, tuple)) else []


def _values(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, Mapping) else []
