"""The client as a program uses it: what is not given comes from the environment's settings.

    async with OpenAIClient("gpt-5-mini") as client:
        result = await client.invoke("Why is the sky blue?")

`SyncClient` is the same without `await`. `litellm` holds the functions that users of litellm know.
"""

from deltafan.client.batch import iter_batch, run_batch
from deltafan.client.openai_client import OpenAIClient
from deltafan.client.result import Choice, Result
from deltafan.client.sinks import PusherSink
from deltafan.client.sync import SyncClient
from deltafan.client.vectors import Embeddings

__all__ = [
    "Choice",
    "Embeddings",
    "OpenAIClient",
    "PusherSink",
    "Result",
    "SyncClient",
    "iter_batch",
    "run_batch",
]
