"""Everything that is changed about MONAI Label's own objects, and nothing else.

Each change says what MONAI Label 0.8.5 does wrong, and when the change may go. What is adjusted by subclasses stands in
:mod:`ssmsam.server.datastore`: the record of a folder (``local_record``) and the archive (``dicomweb``).
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial, wraps
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, TypeVar

import jwt
import psutil
from fastapi import APIRouter, FastAPI
from monailabel.endpoints.user import auth
from monailabel.utils.sessions import Sessions
from starlette.middleware.cors import CORSMiddleware

from ssmsam.files import private_folder

Class = TypeVar("Class", bound=type)

# --- the web application


def unseal(app: FastAPI) -> None:
    """Let error handlers and middleware be added to an application that runs.

    Fault: the app is made in a start-up event of the web application, whose stack of middleware is complete then, so
    that an app can add nothing. May go when MONAI Label calls the app before it builds its web application.
    """
    app.middleware_stack = None  # the next request builds it with what is added until then


def forbid_other_sites(app: FastAPI) -> None:
    """Take out the middleware that lets pages of every site read all answers.

    Fault: without ``MONAI_LABEL_CORS_ORIGINS`` MONAI Label allows every origin, with credentials, so that any page
    that is opened in a hospital can read its images. May go when the default is no origin.
    """
    app.user_middleware[:] = [one for one in app.user_middleware if one.cls is not CORSMiddleware]


def extend_openapi(app: FastAPI, extend: Callable[[dict[str, Any]], None]) -> None:
    """Let ``extend`` add to the OpenAPI document before it is given away the first time.

    Fault: routes take JSON as text in a form field (``params``), of which the document says nothing. May go when
    MONAI Label's routes take typed bodies.
    """
    stock = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            extend(stock())
        return app.openapi_schema or {}

    app.openapi_schema = None
    app.openapi = openapi  # type: ignore[method-assign]


ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]
"""Those that fit the realm's public RSA key. Never one with a shared secret: the public key would be that secret."""


def accept_signed_tokens() -> None:
    """Let MONAI Label check tokens that are signed with the realm's key (``MONAI_LABEL_AUTH_ENABLE``).

    Fault: ``endpoints/user/auth.py`` calls ``jwt.decode`` without ``algorithms``, and PyJWT 2 refuses that, so that
    every valid token is turned away with 401. May go when the call names them.
    """
    auth.jwt = SimpleNamespace(decode=partial(jwt.decode, algorithms=ALGORITHMS))


# --- routes


KEPT = frozenset(
    {
        ("GET", "/batch/infer"), ("GET", "/train/"), ("GET", "/scoring/"), ("DELETE", "/scoring/"),
        ("GET", "/model/info/{model}"), ("GET", "/model/{model}"), ("PUT", "/model/{model}"),
        ("DELETE", "/model/{model}"),
    }
)  # fmt: skip
"""MONAI Label's own calls that answer as they are: they only tell of work, and a model has no file here."""
REMOVED = frozenset(
    {
        ("POST", "/infer/wsi/{model}"), ("POST", "/infer/wsi_v2/{model}"), ("POST", "/train/"), ("POST", "/scoring/"),
        *((verb, f"/proxy/dicom/{op}/{{path:path}}") for op in ("wado", "qido", "stow") for verb in ("GET", "POST")),
    }
)  # fmt: skip
"""Those without one of ours of the same path. Whole-slide pathology: this app has no such model, and the routes read
any path that a request names. Training and scoring by everything there is: no client asks for it. Our proxy is one call
for all services."""
STOCK = tuple(
    import_module(f"monailabel.endpoints.{name}")
    for name in (
        "activelearning", "batch_infer", "datastore", "infer", "info", "logs", "model", "ohif", "proxy", "scoring",
        "session", "train", "wsi_infer",
    )
)  # fmt: skip
"""The modules that hold MONAI Label's routes."""


def replace_routes(app: FastAPI, ours: Iterable[APIRouter]) -> None:
    """Take the stock routes out and put ours in. Raises RuntimeError when MONAI Label has a route that nobody judged.

    Faults: its routes are ``async def`` around code that waits, so that one inference stops every other request; ids,
    tags and paths of a request are believed (``/infer/wsi`` reads any file); ``/proxy/dicom`` drops the query, so that
    OHIF lists another patient's study; ``/ohif`` answers 200 for files that are missing; ``/reload`` lets anybody build
    the server a second time; ``/`` and ``/docs`` load scripts from the internet. Each may go when that is mended.
    """
    ours = list(ours)
    gone = REMOVED | {call for router in ours for route in router.routes for call in _calls(route)}
    for module in STOCK:
        if unknown := {call for route in module.router.routes for call in _calls(route)} - gone - KEPT:
            told = ", ".join(sorted(" ".join(call) for call in unknown))
            raise RuntimeError(
                f"MONAI Label has the route {told}, of which this app does not know: this version of it does not fit; "
                "install the versions in requirements.txt"
            )
    # depending on FastAPI's version, the app looks into the modules' routers or holds copies of their routes
    for routes in (*(module.router.routes for module in STOCK), app.router.routes):
        routes[:] = [route for route in routes if not _calls(route) & gone]
    app.router.routes[:] = [r for r in app.router.routes if getattr(r, "path", "") not in ("/reload", "/", "/docs")]
    for router in ours:
        app.include_router(router)
    app.openapi_schema = None


def _calls(route: Any) -> frozenset[tuple[str, str]]:
    return frozenset((method, getattr(route, "path", "")) for method in getattr(route, "methods", None) or ())


# --- the datastore and sessions


def held(inside: str, *names: str) -> Callable[[Class], Class]:
    """Run these methods of a subclass of LocalDatastore in the context that its method ``inside`` gives: of a lock, or
    where it was looked whether anything can be written.

    Fault: the folder's watcher empties the record for a moment while it looks again, and may exchange it for what
    another process wrote. A request that comes in between finds no image, or loses the label that it saves. May go when
    the record is exchanged in one step, under a lock.
    """

    def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            with getattr(self, inside)():
                return method(self, *args, **kwargs)

        return call

    def decorate(cls: Class) -> Class:
        for name in names:
            setattr(cls, name, wrap(getattr(cls, name)))
        return cls

    return decorate


def keep_sessions_private(sessions: Sessions | None) -> None:
    """Let only the server's account read the images that viewers send for a while.

    Fault: their folder is made with the usual permissions, and anybody on the machine can read it. May go when MONAI
    Label makes it with 0700.
    """
    if sessions is not None:
        with suppress(OSError):  # where it cannot be made, the first session says so
            private_folder(Path(sessions.store_path))


# --- the start


_SLACK_S = 1.5
"""How far the start of a process may be off: the system counts its own start in whole seconds."""


def made_by_this_process(folder: Path) -> bool:
    """Whether an empty folder was made since this process began; it is removed then, with parents made alike.

    Fault: MONAI Label's command makes a missing folder before any app is asked, so that a typing error looks like an
    empty folder of studies. May go when it refuses a missing folder.
    """
    found = _new(folder)
    while _new(folder):
        folder.rmdir()
        folder = folder.parent
    return found


def _new(folder: Path) -> bool:
    try:
        status = folder.stat()
        if any(folder.iterdir()):
            return False
    except OSError:
        return False
    return all(_began() < when <= time.time() for when in (status.st_ctime, status.st_mtime))  # none from the future


def _began() -> float:
    """When this process began, in seconds since 1970."""
    process = psutil.Process()
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / 100) + 0.1
    except (OSError, ValueError, AttributeError):  # not Linux
        return process.create_time() + _SLACK_S


WORKER = "monailabel.interfaces.utils.app"
"""The program of the processes in which MONAI Label trains, scores and infers batches."""


def is_worker() -> bool:
    """Whether this process is one of those."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name == WORKER


def end_with_parent(*, every_s: float = 1.0) -> None:
    """From here on this process ends when the one that started it has ended.

    Fault: a training, a batch or a scoring goes on when its server was killed, with all threads of the machine. May go
    when MONAI Label ends its processes with itself.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every_s)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def refuse_to_start(error: Exception) -> NoReturn:
    """End the process with a message that a user can act on.

    Outside of the server's start the caller gets the exception.

    Fault: an exception inside the start-up event is shown as a long trace and loses its message. May go when MONAI
    Label prints the message of an app that does not start.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise error from None
    print(f"\nssmsam does not start: {error}", file=sys.stderr, flush=True)
    logging.shutdown()
    os._exit(2)
