"""One request: from its body to the end of its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from aiohttp import web

from deltafan.devserver.provider.answer import compose
from deltafan.devserver.provider.api_errors import ApiError, from_validation, refusal, stream_error
from deltafan.devserver.provider.chat import ChatRequest, digest
from deltafan.devserver.provider.chunks import Envelope, Piece
from deltafan.devserver.provider.dialects import Dialect
from deltafan.devserver.provider.endings import Ending, with_faults
from deltafan.devserver.provider.faults import REFUSALS, Fault, active_faults
from deltafan.devserver.provider.journal import Journal, RequestRecord, without_secrets
from deltafan.devserver.provider.overrides import (
    header_name,
    header_options,
    metadata_name,
    metadata_options,
    override,
)
from deltafan.devserver.provider.script import Script
from deltafan.devserver.provider.sending import Output, Pace, finish, send_stream
from deltafan.devserver.provider.sent import read_event
from deltafan.devserver.provider.source import Replay
from deltafan.errors import ValidationError

_EVENT_STREAM = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request, and everything that decides its answer."""

    http: web.Request
    dialect: Dialect
    chat: ChatRequest
    script: Script
    faults: dict[str, Fault]
    record: RequestRecord
    journal: Journal

    def output(self, headers: Mapping[str, str], length: int | None = None) -> tuple[web.StreamResponse, Output]:
        response = web.StreamResponse(headers={**headers, "x-request-id": self.record.id})
        response.content_length = length
        return response, Output(self.http, response, self.faults)

    def envelope(self) -> Envelope:
        wanted = self.chat.include_usage if self.chat.stream else True
        return Envelope(
            id=self.record.id,
            created=int(time.time()),
            model=self.chat.model,
            usage=wanted and self.script.usage and "no_usage" not in self.faults,
            late_usage="late_usage" in self.faults,
            done="no_done" not in self.faults,
        )


async def complete(
    http: web.Request, dialect: Dialect, script: Script, record: RequestRecord, journal: Journal
) -> web.StreamResponse:
    """Answers one request.

    :raises ApiError: the request is not right, or a fault refuses it.
    :raises ConnectionError: the client has gone.
    """
    exchange = await _begin(http, dialect, script, record, journal)
    if delay := exchange.faults.get("slow_headers"):
        await asyncio.sleep(delay.arg or 0)
    for name, fault in exchange.faults.items():
        if name in REFUSALS:
            raise refusal(fault, exchange.chat.model)
    if exchange.chat.stream:
        return await _stream(exchange)
    return await _whole(exchange)


async def _begin(
    http: web.Request, dialect: Dialect, script: Script, record: RequestRecord, journal: Journal
) -> Exchange:
    chat = dialect.parse(await _body(http))
    record.model, record.stream = chat.model, chat.stream
    record.messages_digest = digest(chat.messages)
    record.params = without_secrets(chat.params)
    try:
        from_metadata = metadata_options(chat.metadata)
        from_headers = header_options(http.headers.items())
        script = override(script, from_metadata, metadata_name)
        script = override(script, from_headers, header_name)
    except ValidationError as error:
        raise from_validation(error) from None
    key = from_headers.get("key", from_metadata.get("key", ""))
    record.key = digest(chat.prompt) + (f":{key[:256]}" if key else "")
    faults = active_faults(script.faults, journal.count(record.key))
    record.faults = [str(fault) for fault in faults.values()]
    if isinstance(script.source, Replay) and dialect.replays and not chat.stream:
        raise ApiError(400, "stream: must be true, a replay only streams", param="stream")
    journal.changed()
    return Exchange(http, dialect, chat, script, faults, record, journal)


async def _body(http: web.Request) -> bytes:
    try:
        return await http.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise ApiError(413, error.text or "The body is too large.") from None


async def _stream(exchange: Exchange) -> web.StreamResponse:
    source = exchange.script.source
    if isinstance(source, Replay):
        pieces = _replayed(source, done="no_done" not in exchange.faults)
    else:
        answer = compose(exchange.script, exchange.chat, exchange.faults, exchange.record.id)
        pieces = exchange.dialect.pieces(answer, exchange.envelope())
    response, output = exchange.output(_EVENT_STREAM)
    exchange.record.status = 200
    await output.open()
    await asyncio.sleep(exchange.script.first_token_delay)
    items = with_faults(pieces, exchange.faults, exchange.dialect.error)
    await send_stream(items, output, Pace(exchange.script.rate), exchange.record, exchange.journal)
    return response


def _replayed(source: Replay, *, done: bool) -> Iterable[Piece]:
    for event in source.events:
        if done or event.strip() != b"data: [DONE]":
            added = read_event(event)
            yield Piece(event, True, added.text, None, added.calls, added.usage, added.finish_reason)


async def _whole(exchange: Exchange) -> web.StreamResponse:
    """One JSON body, when a stream of it would have ended. A fault of the stream hits the body as a whole."""
    whole = exchange.dialect.whole(exchange.script, exchange.chat, exchange.faults, exchange.envelope())
    body = whole.body
    pace = Pace(exchange.script.rate)
    sent, ending = body, Ending.CLOSE
    fault = next((name for name in exchange.faults if name in ("cut", "close", "stall", "malformed", "error")), None)
    match fault:
        case "cut":
            sent, ending = body[: len(body) // 2], Ending.CUT
        case "close" | "malformed":
            sent = body = body[: len(body) // 2]
        case "stall":
            sent, ending = b"", Ending.STALL
        case "error":
            sent = body = stream_error().body()
    response, output = exchange.output({"Content-Type": "application/json"}, len(body))
    exchange.record.status = 200
    await asyncio.sleep(exchange.script.first_token_delay + pace.due(max(whole.chunks - 1, 0)))
    await output.open()
    await output.write(sent)
    if fault is None:
        exchange.record.sent(
            [Piece(sent, False, whole.text, whole.fault, whole.calls, whole.usage, whole.finish_reason)]
        )
        exchange.record.chunks = whole.chunks
    else:
        exchange.record.fail(fault)
        exchange.journal.changed()
    await finish(ending, output)
    return response
