"""Answers as the openai SDK's own objects: made of our results and events, and equal to what the SDK would give.

They can be read by key as well; see `keyed`.
"""

from __future__ import annotations

import secrets
import sys
from array import array
from base64 import b64encode
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, cast

from pydantic import BaseModel

from deltafan.client import keyed
from deltafan.client.result import Choice, Result
from deltafan.client.vectors import Embeddings
from deltafan.events import Delta, Done, Event, ReasoningDelta, RefusalDelta, TextDelta, ToolCallDelta, Usage
from deltafan.llm.seam import Ended, Started
from deltafan.transcript import ToolCall

_M = TypeVar("_M", bound=BaseModel)
_construct: Any = cast("Any", BaseModel.model_construct).__func__
"""Pydantic's own. The SDK's looks at every field's type anew, which takes ten times as long, a chunk."""


def _make(kind: type[_M], **values: Any) -> _M:
    """Not validated: what is made here is known to be right, and finish reasons may be of our making."""
    made: _M = _construct(kind, **values)
    return made


def completion_of(result: Result) -> keyed.ChatCompletion:
    """A result as the SDK's `ChatCompletion`."""
    made = _make(
        keyed.ChatCompletion,
        id=result.response_id or _new_id(),
        object="chat.completion",
        created=result.created,
        model=result.model,
        choices=[_choice(choice) for choice in result.choices],
        usage=usage_of(result.usage),
    )
    made._request_id = result.request_id
    return made


def _choice(choice: Choice) -> keyed.Choice:
    calls = [_call(call) for call in choice.tool_calls]
    more: dict[str, Any] = {"reasoning_content": choice.reasoning} if choice.reasoning else {}
    message = _make(
        keyed.ChatCompletionMessage,
        role="assistant",
        content=choice.text or (None if calls or choice.refusal else ""),
        refusal=choice.refusal or None,
        tool_calls=calls or None,
        **more,
    )
    return _make(keyed.Choice, index=choice.index, message=message, finish_reason=choice.finish_reason, logprobs=None)


def _call(call: ToolCall) -> keyed.ChatCompletionMessageFunctionToolCall:
    function = _make(keyed.Function, name=call.name, arguments=call.arguments)
    return _make(
        keyed.ChatCompletionMessageFunctionToolCall,
        id=call.id or f"call_{call.index}",
        type="function",
        function=function,
    )


def usage_of(usage: Usage) -> keyed.CompletionUsage | None:
    """Tokens, and in `cost` the US dollars where they are known. `None` if the tokens are not."""
    if usage.prompt_tokens is None or usage.completion_tokens is None:
        return None
    more: dict[str, Any] = {} if usage.cost_usd is None else {"cost": usage.cost_usd}
    if usage.cached_tokens is not None:
        more["prompt_tokens_details"] = _make(keyed.PromptTokensDetails, cached_tokens=usage.cached_tokens)
    if usage.reasoning_tokens is not None:
        more["completion_tokens_details"] = _make(
            keyed.CompletionTokensDetails, reasoning_tokens=usage.reasoning_tokens
        )
    total = usage.total_tokens
    return _make(
        keyed.CompletionUsage,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens if total is None else total,
        **more,
    )


class Chunker:
    """One completion's events as the SDK's chunks.

    :param started: who is asked, until it is known who answers.
    :param include_usage: one more chunk comes last, which says nothing and has the usage.
    """

    def __init__(self, started: Started, include_usage: bool) -> None:
        self._head: dict[str, Any] = {}
        self._begin(started)
        self._include_usage = include_usage
        self._begun: set[int] = set()
        self._usage: Usage | None = None

    def _begin(self, started: Started) -> None:
        self._head = {
            "id": started.response_id or _new_id(),
            "object": "chat.completion.chunk",
            "created": started.created,
            "model": started.model,
        }

    def chunks(self, event: Event) -> Sequence[keyed.ChatCompletionChunk]:
        if isinstance(event, Started):
            self._begin(event)
        elif isinstance(event, Usage):
            self._usage = event
        elif isinstance(event, Delta):
            return [self._chunk([self._delta(event)])]
        elif isinstance(event, Done):
            return self._last(event)
        return ()

    def _delta(self, event: Delta) -> keyed.ChunkChoice:
        fields: dict[str, Any] = {}
        if event.choice not in self._begun:
            self._begun.add(event.choice)
            fields["role"] = "assistant"
        match event:
            case TextDelta():
                fields["content"] = event.text
            case ReasoningDelta():
                fields["reasoning_content"] = event.text
            case RefusalDelta():
                fields["refusal"] = event.text
            case ToolCallDelta():
                fields["tool_calls"] = [_piece(event)]
        return _chunk_choice(event.choice, fields, None)

    def _last(self, done: Done) -> list[keyed.ChatCompletionChunk]:
        reasons = done.finish_reasons if isinstance(done, Ended) else {}
        last = [
            self._chunk([_chunk_choice(index, {}, reasons.get(index, done.finish_reason))])
            for index in sorted(self._begun | reasons.keys() or {0})
        ]
        if self._include_usage:
            # With a choice, as litellm has it, whose programs read `choices[0]` of every chunk.
            last.append(self._chunk([_chunk_choice(0, {}, None)], usage_of(self._usage or Usage())))
        return last

    def _chunk(
        self, choices: list[keyed.ChunkChoice], usage: keyed.CompletionUsage | None = None
    ) -> keyed.ChatCompletionChunk:
        return _make(keyed.ChatCompletionChunk, **self._head, choices=choices, usage=usage)


def _chunk_choice(index: int, fields: dict[str, Any], finish_reason: Any) -> keyed.ChunkChoice:
    delta = _make(keyed.ChoiceDelta, **fields)
    return _make(keyed.ChunkChoice, index=index, delta=delta, finish_reason=finish_reason, logprobs=None)


def _piece(event: ToolCallDelta) -> keyed.ChoiceDeltaToolCall:
    function = _make(keyed.ChoiceDeltaToolCallFunction, name=event.name, arguments=event.arguments)
    kind = "function" if event.call_id is not None else None
    return _make(keyed.ChoiceDeltaToolCall, index=event.index, id=event.call_id, type=kind, function=function)


def embedding_response_of(embeddings: Embeddings, *, base64: bool = False) -> keyed.CreateEmbeddingResponse:
    """Vectors as the SDK's `CreateEmbeddingResponse`.

    :param base64: each is the base64 of its float32s, as the provider sends it, and not a list.
    """
    tokens = embeddings.usage.prompt_tokens or 0
    cost: dict[str, Any] = {} if embeddings.usage.cost_usd is None else {"cost": embeddings.usage.cost_usd}
    return _make(
        keyed.CreateEmbeddingResponse,
        object="list",
        model=embeddings.model,
        data=[
            _make(keyed.Embedding, object="embedding", index=index, embedding=_base64(vector) if base64 else vector)
            for index, vector in enumerate(embeddings.vectors)
        ],
        usage=_make(
            keyed.EmbeddingUsage, prompt_tokens=tokens, total_tokens=embeddings.usage.total_tokens or tokens, **cost
        ),
    )


def _base64(vector: Iterable[float]) -> str:
    floats = array("f", vector)
    if sys.byteorder == "big":
        floats.byteswap()
    return b64encode(floats.tobytes()).decode()


def _new_id() -> str:
    return f"chatcmpl-{secrets.token_hex(12)}"
