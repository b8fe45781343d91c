"""How the HTTP API refuses: a status and a line of plain text, as Pusher's does."""

from __future__ import annotations

from aiohttp import web


class ApiError(Exception):
    """A request that is refused. The message is the body of the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message

    def response(self) -> web.Response:
        body = f"{self.message}\n".encode(errors="replace")  # it may quote a path that is no UTF-8
        return web.Response(status=self.status, body=body, content_type="text/plain", charset="utf-8")
