"""What a client says on its WebSocket, and what becomes of it. A bad frame gets an error; it never ends the connection.

https://pusher.com/docs/channels/library_auth_reference/pusher-websockets-protocol/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from deltafan.devserver.pusher import messages
from deltafan.devserver.pusher.channels import Member
from deltafan.devserver.pusher.connection import Connection
from deltafan.devserver.pusher.hub import Hub
from deltafan.devserver.pusher.rules import (
    CLIENT_EVENT,
    CLIENT_EVENTS_A_SECOND,
    MAX_DATA,
    MAX_EVENT_NAME,
    MAX_MEMBERS,
    MAX_SUBSCRIPTIONS,
    MAX_USER_ID,
    MAX_USER_INFO,
    PRESENCE,
    TO_USER,
    channel_problem,
    is_authorized,
)
from deltafan.devserver.pusher.signatures import channel_text, is_signature, same, user_text
from deltafan.devserver.pusher.triggers import TOO_LARGE

UNAUTHORIZED = 4009
RATE_LIMITED = 4301


class Refused(Exception):
    """What a client asks for is not granted."""

    def __init__(self, message: str, kind: str = "InvalidRequest", status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind
        self.status = status

    @property
    def code(self) -> int | None:
        return UNAUTHORIZED if self.status == 401 else None


class Session:
    """One connection's conversation."""

    def __init__(self, hub: Hub, connection: Connection) -> None:
        self._hub = hub
        self._connection = connection

    def receive(self, text: str) -> None:
        """Takes a frame."""
        try:
            frame = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            self._error(f"A frame must be JSON: {error}")
            return
        if not isinstance(frame, dict) or not isinstance(frame.get("event"), str):
            self._error("A frame must be a JSON object with a string `event`")
            return
        name, data = frame["event"], frame.get("data")
        if name == "pusher:ping":
            self._connection.send(messages.PONG)
        elif name == "pusher:pong":
            pass  # that it came is what matters, and every frame counts for that
        elif name.startswith(CLIENT_EVENT):
            self._client_event(name, frame.get("channel"), data)
        elif name not in ("pusher:subscribe", "pusher:unsubscribe", "pusher:signin"):
            self._error(f"Unknown event {name[:MAX_EVENT_NAME]!r}")
        elif not isinstance(data, dict):
            self._error(f"The data of {name} must be a JSON object")
        elif name == "pusher:subscribe":
            self._subscribe(data)
        elif name == "pusher:unsubscribe":
            self._unsubscribe(data)
        else:
            self._sign_in(data)
        self._hub.changed()

    def _error(self, message: str, code: int | None = None, channel: str | None = None) -> None:
        self._connection.send(messages.error(message, code, channel))

    # Subscriptions

    def _subscribe(self, data: Mapping[str, Any]) -> None:
        channel = data.get("channel")
        if not isinstance(channel, str):
            self._error("The data of pusher:subscribe must have a string `channel`")
            return
        try:
            member = self._admit(channel, data)
        except Refused as refusal:
            # Both forms are documented: libraries bind the one on the channel, debug consoles show the other.
            self._connection.send(messages.subscription_error(channel, refusal.kind, refusal.message, refusal.status))
            self._error(refusal.message, refusal.code, channel)
            return
        self._hub.channels.subscribe(channel, self._connection, member)

    def _admit(self, channel: str, data: Mapping[str, Any]) -> Member | None:
        """Checks a subscription; gives the member on a presence channel."""
        if problem := channel_problem(channel):
            raise Refused(f"Invalid channel name: {problem}")
        if channel in self._connection.channels:
            raise Refused(f"Existing subscription to channel {channel}")
        if len(self._connection.channels) >= MAX_SUBSCRIPTIONS:
            raise Refused(f"At most {MAX_SUBSCRIPTIONS} channels a connection", "LimitReached", 403)
        if channel.startswith(TO_USER) and channel != f"{TO_USER}{self._connection.user_id}":
            raise Refused(f"Only who is signed in as that user may subscribe to {channel}", "AuthError", 401)
        if not is_authorized(channel):
            return None
        channel_data = data.get("channel_data")
        if channel_data is not None and not isinstance(channel_data, str):
            raise Refused("channel_data must be a string with JSON in it")
        self._check_auth(data.get("auth"), channel_text(self._connection.socket_id, channel, channel_data), channel)
        return self._member(channel, channel_data) if channel.startswith(PRESENCE) else None

    def _check_auth(self, auth: object, text: str, what: str) -> None:
        key, colon, signature = auth.partition(":") if isinstance(auth, str) else ("", "", "")
        if not colon:
            raise Refused(f"Auth value for {what} is invalid: should be of format 'key:signature'", "AuthError", 401)
        if not same(self._hub.app.key, key):
            raise Refused("Invalid key in subscription auth data", "AuthError", 401)
        if not is_signature(self._hub.app.secret, text, signature):
            expected = f"Invalid signature: Expected HMAC SHA256 hex digest of {text}, but got {signature}"
            raise Refused(expected, "AuthError", 401)

    def _member(self, channel: str, channel_data: str | None) -> Member:
        if channel_data is None and self._connection.user_id is not None:
            member = Member(self._connection.user_id, self._connection.user_info)
        else:
            member = _read_member(channel_data)
        present = self._hub.channels.members(channel)
        if len(present) >= MAX_MEMBERS and all(one.user_id != member.user_id for one in present):
            raise Refused(f"At most {MAX_MEMBERS} members a presence channel", "LimitReached", 403)
        return member

    def _unsubscribe(self, data: Mapping[str, Any]) -> None:
        channel = data.get("channel")
        if not isinstance(channel, str) or channel not in self._connection.channels:
            self._error("No current subscription to that channel, or subscription in progress")
            return
        self._hub.channels.unsubscribe(channel, self._connection)

    # Users

    def _sign_in(self, data: Mapping[str, Any]) -> None:
        user_data = data.get("user_data")
        try:
            if self._connection.user_id is not None:
                raise Refused("The connection is signed in already")
            if not isinstance(user_data, str):
                raise Refused("user_data must be a string with JSON in it")
            self._check_auth(data.get("auth"), user_text(self._connection.socket_id, user_data), "pusher:signin")
            user = _object(user_data, "user_data")
            self._connection.user_id = _user_id(user.get("id"), "user_data.id")
            self._connection.user_info = user.get("user_info")
        except Refused as refusal:
            self._error(refusal.message, refusal.code)
            return
        self._connection.send(messages.signed_in(user_data))

    # Client events

    def _client_event(self, name: str, channel: object, data: object) -> None:
        if not isinstance(channel, str) or not is_authorized(channel):
            self._error("Client event rejected - only supported on private and presence channels")
            return
        if channel not in self._connection.channels:
            shown = channel[:MAX_EVENT_NAME]
            self._error(f"Cannot broadcast client event (connection not subscribed to channel {shown})")
            return
        if not self._connection.may_send_client_event():
            limit = f"at most {CLIENT_EVENTS_A_SECOND} a second"
            self._error(f"Client event rejected due to rate limit: {limit}", RATE_LIMITED, channel)
            return
        text = data if isinstance(data, str) else messages.json_text(data)
        if len(name) > MAX_EVENT_NAME:
            self._error(f"Event name is too long: at most {MAX_EVENT_NAME} characters", channel=channel)
            return
        if len(text.encode()) > MAX_DATA:
            self._error(TOO_LARGE, channel=channel)
            return
        user_id = self._hub.channels.user_of(channel, self._connection)
        message = messages.event(name, channel, text, user_id)
        self._hub.channels.broadcast(channel, message, but=self._connection.socket_id)
        told = {"name": "client_event", "channel": channel, "event": name, "data": text}
        told["socket_id"] = self._connection.socket_id
        self._hub.webhooks.notify(told if user_id is None else told | {"user_id": user_id})


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise Refused(f"{what} must be a JSON object")
    return value


def _read_member(channel_data: str | None) -> Member:
    if channel_data is None:
        raise Refused("channel_data is needed on a presence channel", "AuthError", 401)
    data = _object(channel_data, "channel_data")
    info = data.get("user_info")
    if len(orjson.dumps(info)) > MAX_USER_INFO:
        raise Refused(f"user_info must be at most {MAX_USER_INFO} bytes of JSON")
    return Member(_user_id(data.get("user_id"), "user_id"), info)


def _user_id(value: object, what: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_USER_ID:
        raise Refused(f"{what} must be a string of 1 to {MAX_USER_ID} characters, or a number")
    return value
