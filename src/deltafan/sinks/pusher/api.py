"""Pusher's HTTP API: one request, and what its answer means.

The `pusher` package builds, signs and encrypts; a backend under its plug-in point sends through one pooled session. Its
own limits are not used: it measures with `sys.getsizeof`, allows longer channel names than the service, and batches of
any size.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
from pusher.crypto import encrypt, parse_master_key
from pusher.http import Request, make_query_string
from pusher.pusher_client import PusherClient
from pusher.signature import sign
from yarl import URL

from deltafan.channels import ENCRYPTED
from deltafan.settings import PusherSettings
from deltafan.sinks.pusher.messages import Message

BATCH_MAX: Final = 10
"""Events in one request: https://pusher.com/docs/channels/library_auth_reference/rest-api/#batch-events."""
CONNECTIONS: Final = 64
_BODY_SHOWN: Final = 200
_SKEW = re.compile(r"timestamp expired|not within \d+ ?s of server time", re.IGNORECASE)
_TIME = re.compile(r"server time \((\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)\)")
_RECIPE = re.compile(r": you should have sent|\(")  # how one signs, at length
_SKEW_MIN: Final = 30.0
"""Seconds: the Date header is exact to one, and a slow answer is no skew."""


class ApiError(Exception):
    """A request that was not accepted. `str()` of it holds no secret."""


class Transient(ApiError):
    """It may be accepted later: no connection, a timeout, 429, 5xx.

    :param retry_after: seconds that the server asked us to wait.
    """

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Refused(ApiError):
    """This request will never be accepted (400, 413, …)."""


class Forbidden(ApiError):
    """403: the app is disabled, or over its quota. 404: there is no such app, or not yet."""


class Unauthorized(ApiError):
    """401: the credentials are wrong."""


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: str
    date: str | None
    retry_after: str | None


class _Backend:
    """The `pusher` package's plug-in point. The answer comes back as it is."""

    def __init__(self, client: Any, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def send_request(self, request: Request) -> _Answer:
        async with self._session.request(
            request.method,
            URL(request.url, encoded=True),
            data=request.body,
            headers=request.headers,
            allow_redirects=False,
        ) as response:
            raw = await response.content.read(64 * 1024)
            return _Answer(
                response.status,
                raw.decode("utf-8", "replace"),
                response.headers.get("Date"),
                response.headers.get("Retry-After"),
            )


class PusherApi:
    """Publishes messages. Made inside a running loop, and closed by `aclose`."""

    def __init__(self, settings: PusherSettings) -> None:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=settings.timeout),
            connector=aiohttp.TCPConnector(limit=CONNECTIONS, keepalive_timeout=60),
        )
        self._client = PusherClient(
            app_id=settings.app_id,
            key=settings.key,
            secret=settings.secret.get_secret_value(),
            cluster=settings.cluster,
            host=settings.host,
            port=settings.port,
            ssl=settings.tls,
            backend=_Backend,
            session=self._session,
        )
        master_key = settings.encryption_master_key
        self._master_key = parse_master_key(None, master_key.get_secret_value() if master_key else None)
        self.clock_offset = 0.0
        """Seconds that Pusher's clock is ahead of ours, where it was too much; what we sign is corrected by it."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._session.close()

    async def send(self, batch: Sequence[tuple[str, Message]]) -> None:
        """Publish up to `BATCH_MAX` messages, each with its channel, in order. They are accepted all, or none.

        :raises ApiError: they were not accepted, or nobody can tell.
        """
        events = [
            {"channel": channel, "name": message.name, "data": self._data(channel, message)}
            for channel, message in batch
        ]
        answer = await self._post(events)
        if answer.status == 401 and _SKEW.search(answer.body) and self._learn_clock(answer):
            answer = await self._post(events)
        _check(answer, self._client.host)

    async def check(self) -> None:
        """Ask for the app's channels, which costs nothing.

        :raises ApiError: as `send`.
        """
        _check(await self._send(self._client.channels_info.make_request("deltafan-")), self._client.host)

    def _data(self, channel: str, message: Message) -> str:
        """Sealed for an encrypted channel, which nobody uses without a key: see the sink."""
        if not channel.startswith(ENCRYPTED):
            return message.data
        return json.dumps(encrypt(channel, message.data, self._master_key))

    async def _post(self, events: list[dict[str, str]]) -> _Answer:
        request = self._client.trigger_batch.make_request(events, already_encoded=True)
        if self.clock_offset:
            _sign_again(request, self._client.secret, time.time() + self.clock_offset)
        return await self._send(request)

    async def _send(self, request: Request) -> _Answer:
        try:
            answer: _Answer = await self._client.http.send_request(request)
        except TimeoutError:
            raise Transient(f"{self._client.host} did not answer in time") from None
        except (aiohttp.ClientError, OSError) as error:
            reason = "it does not speak TLS" if isinstance(error, aiohttp.ClientSSLError) else None
            reason = reason or getattr(error, "strerror", None) or type(error).__name__
            raise Transient(f"{self._client.host} cannot be reached: {reason}") from None
        return answer

    def _learn_clock(self, answer: _Answer) -> bool:
        """Take the server's clock from its answer. False when that would change nothing."""
        theirs = _server_time(answer)
        if theirs is None:
            return False
        offset = theirs - time.time()
        if abs(offset - self.clock_offset) < _SKEW_MIN:
            return False
        self.clock_offset = offset
        return True


def _server_time(answer: _Answer) -> float | None:
    """The time that a refusal for its timestamp tells, in its text or in its header."""
    try:
        if told := _TIME.search(answer.body):
            return datetime.fromisoformat(told[1]).timestamp()
        return parsedate_to_datetime(answer.date or "").timestamp()
    except ValueError:
        return None


def _sign_again(request: Request, secret: str, now: float) -> None:
    """As the package signs, with a clock of ours: it has none of its own to set."""
    params = {name: value for name, value in request.query_params.items() if name != "auth_signature"}
    params["auth_timestamp"] = f"{now:.0f}"
    text = "\n".join([request.method, request.path, make_query_string(params)])
    request.query_params = params | {"auth_signature": sign(secret, text)}


def _check(answer: _Answer, host: str) -> None:
    if 200 <= answer.status < 300 and answer.body.lstrip().startswith("{"):
        return
    said = " ".join(_RECIPE.split(answer.body)[0].split())[:_BODY_SHOWN]
    told = f"{host} answered {answer.status}{f': {said}' if said else ''}"
    match answer.status:
        case 408 | 425 | 429:
            raise Transient(told, _seconds(answer.retry_after))
        case status if status >= 500 or status < 400:  # below: a redirect, or a page of somebody else's
            raise Transient(told, _seconds(answer.retry_after))
        case 401 if _SKEW.search(answer.body):
            raise Transient(f"this machine's clock is wrong, or Pusher's is (set it by NTP): {told}", 5.0)
        case 401:
            raise Unauthorized(f"wrong credentials (check PUSHER_APP_ID, PUSHER_KEY and PUSHER_SECRET): {told}")
        case 403 | 404:
            raise Forbidden(told)
        case _:
            raise Refused(told)


def _seconds(text: str | None) -> float:
    try:
        return min(max(float(text or 0), 0.0), 60.0)
    except ValueError:
        return 0.0  # a date; our own wait will do
