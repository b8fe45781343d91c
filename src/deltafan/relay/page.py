"""The pages at `/` and `/jobs`: static files of the package, under a strict content security policy."""

from __future__ import annotations

import logging
from html import escape
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from deltafan.relay import deadletters, devtools, stats
from deltafan.relay.keys import ApiKeys
from deltafan.relay.pusher_auth import connection
from deltafan.settings import PusherSettings, RelaySettings

_KINDS: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src {connect}; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types"
)
_HEADERS: Final = {
    "X-Frame-Options": "DENY",  # for browsers that do not know frame-ancestors
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cache-Control": "no-cache",
}

logger = logging.getLogger("deltafan.relay")


def add_pages(
    app: web.Application, settings: RelaySettings, keys: ApiKeys, pusher: PusherSettings | None = None
) -> None:
    """The pages, and what they ask for. They import the JavaScript client from `/client.js`.

    What a page has to know of the relay stands in its HTML: it is the same for everybody.
    """
    pusher = pusher or PusherSettings()
    has_dev_tools = settings.dev_tools and not keys.required
    if settings.dev_tools and keys.required:
        logger.warning("dev_tools are off: they are for an open relay on one's own machine, and this one has API keys")
    headers = _HEADERS | {"Content-Security-Policy": _POLICY.format(connect=" ".join(["'self'", *sockets(pusher)]))}
    known = {
        "needs_key": "yes" if keys.required else "no",
        "heartbeat": f"{settings.heartbeat:g}",
        "model": settings.page_model,
        "pusher": "yes" if pusher.configured else "no",
        "dev_tools": "yes" if has_dev_tools else "no",
    }
    router, folder = app.router, files("deltafan.relay").joinpath("web")
    for path, name in (("/", "index.html"), ("/jobs", "jobs.html")):
        router.add_get(path, _static(_filled(folder.joinpath(name), known), "text/html", headers))
    for file in folder.iterdir():
        kind = _KINDS.get(f".{file.name.rpartition('.')[2]}")
        if kind is not None:
            router.add_get(f"/static/{file.name}", _static(file.read_bytes(), kind, headers))
    _add_dashboard(app, keys)
    if has_dev_tools:
        router.add_post("/dev/kill-worker", devtools.kill_worker)


def _add_dashboard(app: web.Application, keys: ApiKeys) -> None:
    app[stats.SAMPLERS] = stats.Samplers(shows_hosts=not keys.required)
    app.router.add_get("/v1/stats", stats.statistics, allow_head=False)
    app.router.add_get("/v1/dead", deadletters.listing)
    app.router.add_post("/v1/dead/{id}/retry", deadletters.retry)
    app.router.add_delete("/v1/dead/{id}", deadletters.drop)


def sockets(pusher: PusherSettings) -> list[str]:
    """Where the page may open WebSockets, as a content security policy names it."""
    if not pusher.configured:
        return []
    where = connection(pusher, ())
    scheme = "wss" if where["tls"] else "ws"
    if where["host"] is None:
        return [f"{scheme}://ws-{where['cluster']}.pusher.com"]
    host = f"[{where['host']}]" if ":" in where["host"] else where["host"]
    return [f"{scheme}://{host}:{where['port']}"]


def _filled(page: Traversable, known: dict[str, str]) -> bytes:
    html = page.read_text("utf-8")
    for name, value in known.items():
        html = html.replace("{{" + name + "}}", escape(value))
    return html.encode()


def _static(body: bytes, kind: str, headers: dict[str, str]) -> Handler:
    async def serve(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=headers)

    return serve
