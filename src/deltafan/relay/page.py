"""The plain page at `/`: static files of the package, under a strict content security policy."""

from __future__ import annotations

from html import escape
from importlib.resources import files

from aiohttp import web
from aiohttp.typedefs import Handler

from deltafan.relay.access import ApiKeys
from deltafan.settings import RelaySettings

_FILES = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "follow.js": "text/javascript",
    "view.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def add_page(router: web.UrlDispatcher, settings: RelaySettings, keys: ApiKeys) -> None:
    """What the page has to know of the relay stands in its HTML: it is the same for everybody."""
    folder = files("deltafan.relay").joinpath("web")
    html = folder.joinpath("index.html").read_text("utf-8")
    for name, value in (
        ("{{needs_key}}", "yes" if keys.required else "no"),
        ("{{heartbeat}}", f"{settings.heartbeat:g}"),
        ("{{model}}", settings.page_model),
    ):
        html = html.replace(name, escape(value))
    router.add_get("/", _static(html.encode(), "text/html"))
    for name, kind in _FILES.items():
        router.add_get(f"/static/{name}", _static(folder.joinpath(name).read_bytes(), kind))


def _static(body: bytes, kind: str) -> Handler:
    async def serve(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=_HEADERS)

    return serve
