"""A scripted provider that speaks OpenAI's interfaces: for demos, and to test an app against.

`POST /v1/chat/completions` and `POST /v1/responses` (stream or not), `POST /v1/embeddings`, `GET /v1/models`, `GET
/healthz`, and `GET /requests`, which tells what was asked and sent (`DELETE` forgets it). A `Script` says what is
answered; one request changes it with `X-Provider-*` headers, or with the same names in its `metadata`. Tokens are
counted simply: a chunk is a completion token, a word a prompt token.

    async with running(Script(source=Text("Hello."), rate=20)) as provider:
        client = AsyncOpenAI(base_url=provider.base_url, api_key="any")
"""

from deltafan.devserver.provider.app import create_app
from deltafan.devserver.provider.faults import FAULTS, Fault, FaultRule, parse_fault, parse_faults
from deltafan.devserver.provider.journal import RequestRecord
from deltafan.devserver.provider.script import Script, ToolCall, parse_tool_calls
from deltafan.devserver.provider.server import Provider, running, serve
from deltafan.devserver.provider.source import Echo, Replay, Source, Text, Written, read_source, replay

__all__ = [
    "FAULTS",
    "Echo",
    "Fault",
    "FaultRule",
    "Provider",
    "Replay",
    "RequestRecord",
    "Script",
    "Source",
    "Text",
    "ToolCall",
    "Written",
    "create_app",
    "parse_fault",
    "parse_faults",
    "parse_tool_calls",
    "read_source",
    "replay",
    "running",
    "serve",
]
