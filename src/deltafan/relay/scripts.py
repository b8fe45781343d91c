"""`/client.js`: the JavaScript client, for pages of any origin; `/react.js`, which imports it by its own name."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from aiohttp import web
from aiohttp.typedefs import Handler

_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "Cache-Control": "no-cache",  # asked for again each time, and mostly answered with 304
}
_FILES = {"/client.js": "deltafan.js", "/deltafan.js": "deltafan.js", "/react.js": "react.js"}


def add_scripts(router: web.UrlDispatcher) -> None:
    folder = files("deltafan.relay").joinpath("js")
    for path, name in _FILES.items():
        router.add_get(path, _script(folder.joinpath(name).read_bytes()))


def _script(body: bytes) -> Handler:
    tag = hashlib.sha256(body).hexdigest()[:32]

    async def serve(request: web.Request) -> web.Response:
        known = request.if_none_match or ()
        if any(given.value in (tag, "*") for given in known):
            response = web.Response(status=304, headers=_HEADERS)
        else:
            response = web.Response(body=body, content_type="text/javascript", charset="utf-8", headers=_HEADERS)
        response.etag = tag
        return response

    return serve
