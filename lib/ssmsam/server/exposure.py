"""Pages of other sites get no answer: a browser in the hospital must not become their way to its images."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import FastAPI
from monailabel.config import settings
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

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
