"""Answers are compressed in transport for clients that accept it: a mask is mostly zeros."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

SMALLEST_BYTES = 2048
LEVEL = 1
"""The fastest: masks of zeros shrink to a hundredth at any level. The levels were not compared further."""
AS_THEY_ARE = ("/proxy/", "/datastore/image", "/datastore/dataset")
"""Paths whose content is compressed already, or passed through in pieces."""


class Compression:
    """ASGI middleware: gzip, except for paths in :data:`AS_THEY_ARE`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._compressed = GZipMiddleware(app, minimum_size=SMALLEST_BYTES, compresslevel=LEVEL)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        plain = scope["type"] != "http" or scope["path"].startswith(AS_THEY_ARE)
        await (self._app if plain else self._compressed)(scope, receive, send)


def compress_answers(app: FastAPI) -> None:
    """Put the middleware around an app that may have answered already."""
    app.middleware_stack = None  # built anew at the next request
    app.add_middleware(Compression)
