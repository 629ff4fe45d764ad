"""The web application round the app: routes, error handlers, and the middleware in front of them.

A browser in the hospital must not become another site's way to its images.
"""

from __future__ import annotations

import threading
from urllib.parse import urlsplit

from monailabel.app import app as web
from monailabel.config import settings
from starlette.datastructures import Headers
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ssmsam.server import monailabel_patches as patches
from ssmsam.server.app import ServerApp
from ssmsam.server.errors import install_handlers
from ssmsam.server.openapi import describe
from ssmsam.server.routes import ROUTERS
from ssmsam.service.prompt_service import warm_up

SMALLEST_BYTES = 2048
LEVEL = 1
"""The fastest: masks of zeros shrink to a hundredth at any level. The levels were not compared further."""
AS_THEY_ARE = (
    "/proxy/", "/datastore/image", "/datastore/dataset", "/studies/image", "/studies/picture", "/studies/thumbnail",
    "/studies/export", "/studies/dataset",
)  # fmt: skip
"""Paths whose content is compressed already, or passed through in pieces."""
READING = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing. A page of another site may send them, but without CORS its script gets no answer."""
FOREIGN = (
    "a page of another site sent this request. If that page is yours, start the server "
    'with MONAI_LABEL_CORS_ORIGINS=["https://its.address"]'
)


class WebApp(ServerApp):
    """A server's app that answers over the web."""

    def on_init_complete(self) -> None:
        """The server is about to answer: mend its routes, and warm up meanwhile."""
        super().on_init_complete()
        patches.keep_sessions_private(self.sessions())
        patches.unseal(web)
        patches.replace_routes(web, ROUTERS)
        patches.extend_openapi(web, describe)
        web.add_middleware(Compression)
        origins = tuple(str(origin) for origin in settings.MONAI_LABEL_CORS_ORIGINS or ())
        if not origins:
            patches.forbid_other_sites(web)
        web.add_middleware(SameSite, origins=origins)
        install_handlers(web)
        patches.accept_signed_tokens()
        self.warming = threading.Thread(target=warm_up, args=(self.encoder, self.decoder), name="warm-up", daemon=True)
        self.warming.start()


class Compression:
    """ASGI middleware: gzip, except for paths in :data:`AS_THEY_ARE`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._compressed = GZipMiddleware(app, minimum_size=SMALLEST_BYTES, compresslevel=LEVEL)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        plain = scope["type"] != "http" or scope["path"].startswith(AS_THEY_ARE)
        await (self._app if plain else self._compressed)(scope, receive, send)


class SameSite:
    """ASGI middleware: requests that change something come from programs, from our own pages, or from allowed origins.

    Args:
        origins: such as ``https://viewer.example``; ``*`` allows every page.
    """

    def __init__(self, app: ASGIApp, origins: tuple[str, ...] = ()) -> None:
        self._app = app
        self._origins = frozenset(origin.rstrip("/") for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        foreign = scope["type"] == "http" and scope["method"] not in READING and self._foreign(Headers(scope=scope))
        await (JSONResponse({"detail": FOREIGN}, status_code=403) if foreign else self._app)(scope, receive, send)

    def _foreign(self, headers: Headers) -> bool:
        """Whether a page of a site that is not allowed sent this. Programs send neither of these headers."""
        origin = headers.get("origin", "")
        if not origin or "*" in self._origins or origin in self._origins:
            return False
        if "sec-fetch-site" in headers:  # what the browser itself says, also behind a proxy
            return headers["sec-fetch-site"] not in ("same-origin", "none")
        return urlsplit(origin).netloc not in (headers.get("host"), headers.get("x-forwarded-host"))
