"""Pages of other sites get no answer: a browser in the hospital must not become their way to its images.

Access tokens (``MONAI_LABEL_AUTH_ENABLE``): MONAI Label does not say which signatures it accepts.

PyJWT refuses to check a token without such a list, so every valid token would be turned away.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from urllib.parse import urlsplit

import jwt
from fastapi import FastAPI
from monailabel.config import settings
from monailabel.endpoints.user import auth
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import JSONResponse
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


ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]
"""Those that fit the realm's public RSA key. Never one with a shared secret: the public key would be that secret."""


def accept_signed_tokens() -> None:
    """Let MONAI Label check tokens signed with the realm's key."""
    auth.jwt = SimpleNamespace(decode=partial(jwt.decode, algorithms=ALGORITHMS))


READING = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing. A page of another site may send them, but without CORS its script gets no answer."""


class SameSite:
    """ASGI middleware: requests that change something come from programs, from our own pages, or from allowed origins.

    Args:
        origins: such as ``https://viewer.example``; ``*`` allows every page.
    """

    def __init__(self, app: ASGIApp, origins: tuple[str, ...] = ()) -> None:
        self._app = app
        self._origins = frozenset(origin.rstrip("/") for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in READING and self._foreign(Headers(scope=scope)):
            refused = JSONResponse(
                {
                    "detail": "a page of another site sent this request. If that page is yours, start the server "
                    'with MONAI_LABEL_CORS_ORIGINS=["https://its.address"]'
                },
                status_code=403,
            )
            await refused(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _foreign(self, headers: Headers) -> bool:
        """Whether a page of a site that is not allowed sent this. Programs send neither of these headers."""
        origin = headers.get("origin", "")
        if not origin or "*" in self._origins or origin in self._origins:
            return False
        if "sec-fetch-site" in headers:  # what the browser itself says, also behind a proxy
            return headers["sec-fetch-site"] not in ("same-origin", "none")
        return urlsplit(origin).netloc not in (headers.get("host"), headers.get("x-forwarded-host"))


def close_to_other_sites(app: FastAPI) -> None:
    """Without ``MONAI_LABEL_CORS_ORIGINS`` pages of other sites may read no answer (MONAI Label lets all of them), and
    requests of theirs that change something are refused."""
    origins = tuple(str(origin) for origin in settings.MONAI_LABEL_CORS_ORIGINS or ())
    if not origins:
        app.user_middleware[:] = [one for one in app.user_middleware if one.cls is not CORSMiddleware]
    app.middleware_stack = None  # built anew at the next request
    app.add_middleware(SameSite, origins=origins)
