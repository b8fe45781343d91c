"""Who is subscribed to what, and who is present. A channel is there while somebody is subscribed to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from deltafan.devserver.pusher.connection import Connection
from deltafan.devserver.pusher.messages import internal
from deltafan.devserver.pusher.rules import PRESENCE

Notify = Callable[[Mapping[str, Any]], None]
"""Takes an event for the webhook."""


@dataclass(frozen=True, slots=True)
class Member:
    user_id: str
    user_info: object


@dataclass(slots=True)
class _Channel:
    subscribers: dict[str, Connection] = field(default_factory=dict)
    """By socket id."""
    users: dict[str, str] = field(default_factory=dict)
    """The user of each socket id, on a presence channel."""
    members: dict[str, Member] = field(default_factory=dict)
    """By user id. A user with several connections is one member."""


class Channels:
    """The occupied channels."""

    def __init__(self, notify: Notify) -> None:
        self._channels: dict[str, _Channel] = {}
        self._notify = notify

    def names(self) -> list[str]:
        return list(self._channels)

    def subscription_count(self, name: str) -> int:
        """Connections."""
        channel = self._channels.get(name)
        return len(channel.subscribers) if channel else 0

    def members(self, name: str) -> list[Member]:
        """The users on a presence channel, those who came first before the others."""
        channel = self._channels.get(name)
        return list(channel.members.values()) if channel else []

    def user_of(self, name: str, connection: Connection) -> str | None:
        channel = self._channels.get(name)
        return channel.users.get(connection.socket_id) if channel else None

    def broadcast(self, name: str, message: bytes, *, but: str | None = None) -> None:
        """Sends to all subscribers except the one whose socket id is `but`."""
        channel = self._channels.get(name)
        if channel is not None:
            for socket_id, connection in list(channel.subscribers.items()):
                if socket_id != but:
                    connection.send(message)

    def subscribe(self, name: str, connection: Connection, member: Member | None) -> None:
        """Subscribes a connection and tells it so, and on a presence channel tells the others."""
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = _Channel()
            self._notify({"name": "channel_occupied", "channel": name})
        channel.subscribers[connection.socket_id] = connection
        connection.channels.add(name)
        if member is None:
            connection.send(internal("subscription_succeeded", name, {}))
            return
        came = member.user_id not in channel.members
        channel.users[connection.socket_id] = member.user_id
        channel.members.setdefault(member.user_id, member)
        present = {user_id: one.user_info for user_id, one in channel.members.items()}
        presence = {"ids": list(present), "hash": present, "count": len(present)}
        connection.send(internal("subscription_succeeded", name, {"presence": presence}))
        if came:
            added = {"user_id": member.user_id, "user_info": member.user_info}
            self.broadcast(name, internal("member_added", name, added), but=connection.socket_id)
            self._notify({"name": "member_added", "channel": name, "user_id": member.user_id})

    def unsubscribe(self, name: str, connection: Connection) -> None:
        """Ends a subscription, if there is one."""
        connection.channels.discard(name)
        channel = self._channels.get(name)
        if channel is None or channel.subscribers.pop(connection.socket_id, None) is None:
            return
        user_id = channel.users.pop(connection.socket_id, None)
        if user_id is not None and user_id not in channel.users.values():
            del channel.members[user_id]
            self.broadcast(name, internal("member_removed", name, {"user_id": user_id}))
            self._notify({"name": "member_removed", "channel": name, "user_id": user_id})
        if not channel.subscribers:
            del self._channels[name]
            self._notify({"name": "channel_vacated", "channel": name})

    def leave(self, connection: Connection) -> None:
        """Ends all subscriptions of a connection."""
        for name in sorted(connection.channels):
            self.unsubscribe(name, connection)

    def attributes(self, name: str, wanted: tuple[str, ...]) -> dict[str, int]:
        """The attributes that this kind of channel has, of those that are wanted."""
        found: dict[str, int] = {}
        if "user_count" in wanted and name.startswith(PRESENCE):
            found["user_count"] = len(self.members(name))
        if "subscription_count" in wanted:
            found["subscription_count"] = self.subscription_count(name)
        return found
