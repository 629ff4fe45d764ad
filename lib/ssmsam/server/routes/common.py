"""What our routes share: the app, who is allowed in, and checked parameters."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, File, Form, HTTPException, Request, Response, UploadFile
from fastapi.routing import APIRoute
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from ssmsam.annotation.log import SHARED_IDS, reader_of
from ssmsam.json_text import InvalidJson, read_json_text, require_storable
from ssmsam.progress import POLL_S, CancelToken, cancellable, stop_if_cancelled
from ssmsam.server.app import ServerApp
from ssmsam.service.errors import InvalidRequest, NotKnown
from ssmsam.service.identifiers import volume_suffix
from ssmsam.service.jobs import Job, act_for


def _with_role(role: str) -> Callable[..., Coroutine[Any, Any, User]]:
    known = Depends(RBAC(role))

    async def allowed(user: User = known) -> User:
        act_for(user.username if settings.MONAI_LABEL_AUTH_ENABLE else "")
        return user

    return allowed


AnyUser = Annotated[User, Depends(_with_role(settings.MONAI_LABEL_AUTH_ROLE_USER))]
Annotator = Annotated[User, Depends(_with_role(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))]
Admin = Annotated[User, Depends(_with_role(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))]

JsonText = Annotated[str, Form()]
Upload = Annotated[UploadFile, File()]
MaybeUpload = Annotated[UploadFile | None, File()]


T = TypeVar("T")
LONG_THREADS = 256
"""Requests that may be at long work, or wait for their turn, at a time: a guess, more than people click at one server.
Where they are all taken, clicks wait too."""
LONGEST_ID = 128
"""Characters of a client's id: a guess, enough for an address."""


async def the_app() -> ServerApp:
    """The app of this server."""
    app: ServerApp = app_instance()
    return app


App = Annotated[ServerApp, Depends(the_app)]


def path_prefix(request: Request) -> str:
    """The path under which a proxy shows the server, "" for none."""
    return str(request.scope.get("root_path") or "").rstrip("/")


def reader(client_id: Any, request: Request) -> str:
    """Who a request comes from: its ``client_id``, and where that says nothing, its address. Raises InvalidRequest."""
    if not isinstance(client_id, str | None) or len(client_id or "") > LONGEST_ID:
        raise InvalidRequest(f"client_id has to be text of at most {LONGEST_ID} characters")
    require_storable(client_id, name="client_id")
    if client_id and not client_id.isprintable():
        raise InvalidRequest("client_id has to be one line of text, without control characters")
    return reader_of(client_id or "", request.client.host if request.client else "")


def is_mine(job: Job, client_id: Any, request: Request, user: User) -> bool:
    """Whether a job belongs to whoever a request comes from: to the same account where people log in, for that is
    proved, and else to the same client."""
    if settings.MONAI_LABEL_AUTH_ENABLE:
        return bool(user.username) and job.login == user.username
    return job.owner == reader(client_id, request)


def may_stop(job: Job, user: User) -> bool:
    """Whether an account may stop a job: its own, and an administrator any. Without logins everybody is one."""
    return settings.MONAI_LABEL_AUTH_ROLE_ADMIN in user.roles or (bool(user.username) and job.login == user.username)


_LONG: list[CapacityLimiter] = []


async def watched(request: Request, work: Callable[[], T]) -> T:
    """``work()`` in a thread, cancelled where the client hangs up. Threads of other requests are not used up by it.

    Raises what the work raises.
    """
    if not _LONG:  # made where an event loop runs
        _LONG.append(CapacityLimiter(LONG_THREADS))
    token = CancelToken()

    def cancellable_work() -> T:
        with cancellable(token):
            stop_if_cancelled()
            return work()

    watch = asyncio.create_task(_cancel_when_gone(request, token))
    try:
        return await to_thread.run_sync(cancellable_work, limiter=_LONG[0])
    finally:
        watch.cancel()


def long(work: Callable[..., T]) -> Callable[..., Coroutine[Any, Any, T]]:
    """A route of plain code that may take long, as :func:`watched`. It has to have a parameter ``request``."""

    @wraps(work)
    async def route(**arguments: Any) -> T:
        return await watched(arguments["request"], lambda: work(**arguments))

    return route


async def _cancel_when_gone(request: Request, token: CancelToken) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(POLL_S)
    token.cancel()


def note_opened(app: ServerApp, image: str, request: Request, client_id: str = "") -> None:
    """Note that somebody opened an image; until it is shown something, its screen is empty. Its slices are embedded.

    Where the request does not say who, it is whoever works at that address without a name.
    """
    app.background.prefer(image, client=reader(client_id, request) if client_id else "")
    for name in [client_id] if client_id else sorted(SHARED_IDS):
        app.datastore().opened(image, client=reader(name, request))


class CheckedJson(APIRoute):
    """A route whose JSON body is read as strictly as JSON in a form field."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            return await handle(_CheckedRequest(request.scope, request.receive))

        return checked


class _CheckedRequest(Request):
    async def json(self) -> Any:
        try:
            return read_json_text(await self.body(), name="the request's body")
        except InvalidJson as error:  # the framework turns other errors into a 400 that does not say why
            raise HTTPException(422, str(error)) from None


def known_image(app: App, image: str) -> str:
    """The query parameter ``image``, which the datastore has."""
    return app.images.require(image)


def scratch_folder() -> Iterator[Path]:
    """A folder for what the request sends and is sent, which goes when the request is over, however it ends."""
    with tempfile.TemporaryDirectory(prefix="ssmsam-") as folder:
        yield Path(folder)


Scratch = Annotated[Path, Depends(scratch_folder)]
KnownImage = Annotated[str, Depends(known_image)]


def require_label(app: ServerApp, label: str, tag: str) -> None:
    """Raise NotKnown unless the datastore has a label for image ``label`` under ``tag``."""
    app.images.require(label)
    tags = app.datastore().get_labels_by_image_id(label)
    if tag not in tags:
        raise NotKnown(f"label of image {label!r} with the tag", tag, map(str, tags))


def json_object(text: str | None, *, name: str) -> dict[str, Any]:
    """The JSON object in a form field. Raises InvalidRequest."""
    value = read_json_text(text or "", name=name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"{name} has to be a JSON object, {{...}}, not {type(value).__name__}")
    return value


def received(file: UploadFile, scratch: Path, **allowed: tuple[str, ...]) -> Path:
    """An uploaded file on disk. Its suffix is checked, its name is not used."""
    suffix = volume_suffix(file.filename, **allowed)
    with tempfile.NamedTemporaryFile(dir=scratch, suffix=suffix, delete=False) as copy:
        shutil.copyfileobj(file.file, copy)
    return Path(copy.name)
