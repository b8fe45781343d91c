"""The openai SDK's objects, which can be read by key as well: litellm's can, and programs written for it do.

`answer["choices"][0]["message"]["content"]` and `answer.choices[0].message.content` are the same. Each class is its
namesake of the SDK otherwise.
"""

from __future__ import annotations

from typing import Any

import openai
from openai import types
from openai.types import chat, completion_usage, create_embedding_response
from openai.types.chat import chat_completion, chat_completion_chunk
from openai.types.chat import chat_completion_message_function_tool_call as function_call


class Keyed(openai.BaseModel):
    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(name)
        return getattr(self, name)

    def __contains__(self, name: object) -> bool:
        return name in type(self).model_fields or name in (self.model_extra or {})

    def get(self, name: str, default: Any = None) -> Any:
        """As a dict's. A field that the answer leaves out is `None`, and not the default, as with litellm."""
        try:
            return self[name]
        except KeyError:
            return default


class ChatCompletion(Keyed, chat.ChatCompletion):
    pass


class Choice(Keyed, chat_completion.Choice):
    pass


class ChatCompletionMessage(Keyed, chat.ChatCompletionMessage):
    pass


class ChatCompletionMessageFunctionToolCall(Keyed, chat.ChatCompletionMessageFunctionToolCall):
    pass


class Function(Keyed, function_call.Function):
    pass


class ChatCompletionChunk(Keyed, chat.ChatCompletionChunk):
    pass


class ChunkChoice(Keyed, chat_completion_chunk.Choice):
    pass


class ChoiceDelta(Keyed, chat_completion_chunk.ChoiceDelta):
    pass


class ChoiceDeltaToolCall(Keyed, chat_completion_chunk.ChoiceDeltaToolCall):
    pass


class ChoiceDeltaToolCallFunction(Keyed, chat_completion_chunk.ChoiceDeltaToolCallFunction):
    pass


class CompletionUsage(Keyed, types.CompletionUsage):
    pass


class PromptTokensDetails(Keyed, completion_usage.PromptTokensDetails):
    pass


class CompletionTokensDetails(Keyed, completion_usage.CompletionTokensDetails):
    pass


class CreateEmbeddingResponse(Keyed, types.CreateEmbeddingResponse):
    pass


class Embedding(Keyed, types.Embedding):
    pass


class EmbeddingUsage(Keyed, create_embedding_response.Usage):
    pass
