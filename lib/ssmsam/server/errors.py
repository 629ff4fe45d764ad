"""From what went wrong to what the user reads: a status and a JSON ``detail``."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)

from ssmsam.annotation.annotations import InvalidSubmission
from ssmsam.annotation.store import CorruptAnnotations
from ssmsam.dicom.web import StoreRefused, StoreUnavailable
from ssmsam.fewshot.checkpoint_registry import UnknownCheckpoint
from ssmsam.fewshot.support import NothingToLearn
from ssmsam.fewshot.task_checkpoint import UnusableCheckpoint
from ssmsam.interactive.request import InvalidPrompt
from ssmsam.json_text import InvalidJson
from ssmsam.models.weights import CorruptWeights, MissingWeights
from ssmsam.progress import Cancelled
from ssmsam.service.errors import (
    InvalidName,
    InvalidRequest,
    NotConfirmed,
    NotKnown,
    NotNow,
    NotYours,
    StudiesNotWritable,
)
from ssmsam.service.jobs import UnknownJob
from ssmsam.volume.errors import UnreadableVolume

logger = logging.getLogger(__name__)


CANNOT_STORE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE}
)
"""Errors of the system that the one who runs the server can end."""
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Those of them that mean that there is no room."""


STATUS: dict[type[Exception], int] = {
    NotKnown: 404,
    UnknownCheckpoint: 404,
    UnknownJob: 404,
    UnusableCheckpoint: 422,
    InvalidRequest: 422,
    NotConfirmed: 409,
    NotNow: 409,
    InvalidName: 422,
    InvalidPrompt: 422,
    InvalidSubmission: 422,
    InvalidJson: 422,
    NothingToLearn: 422,
    Cancelled: 422,
    NotYours: 403,
    UnreadableVolume: 422,
    MissingWeights: 503,
    CorruptWeights: 503,
    StoreUnavailable: 503,
    StudiesNotWritable: 503,
    StoreRefused: 502,
}


def unforeseen(error: Exception) -> bool:
    """Whether an error's message is not meant for users: it may hold paths or names."""
    return not isinstance(error, tuple(STATUS))


def install_handlers(app: FastAPI) -> None:
    """Answer with JSON whatever happens."""
    for error, status in STATUS.items():
        app.add_exception_handler(error, _answer(status))
    app.add_exception_handler(MONAILabelException, _framework_error)
    app.add_exception_handler(CorruptAnnotations, _damaged)
    app.add_exception_handler(OSError, _not_stored)
    app.add_exception_handler(Exception, _unforeseen)


def _answer(status: int) -> Callable[[Request, Exception], JSONResponse]:
    def answer(request: Request, error: Exception) -> JSONResponse:
        logger.info("%s %s: %d %s", request.method, request.url.path, status, error)
        detail = str(error) or "the work was cancelled: ask again to start it anew"
        return JSONResponse({"detail": detail}, status_code=status)

    return answer


def _framework_error(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, ImageNotFoundException | LabelNotFoundException):
        status = 404
    else:
        status = 422 if getattr(error, "error", None) is MONAILabelError.INVALID_INPUT else 500
    logger.info("%s %s: %d %s", request.method, request.url.path, status, getattr(error, "msg", error))
    return JSONResponse({"detail": str(getattr(error, "msg", "the request failed"))}, status_code=status)


def _damaged(request: Request, error: Exception) -> JSONResponse:
    """The file's name is for the one who runs the server."""
    logger.error("%s %s: %s", request.method, request.url.path, error)
    detail = "the stored annotations of an image are damaged; the server's log names the file and what to do"
    return JSONResponse({"detail": detail}, status_code=500)


def _not_stored(request: Request, error: Exception) -> JSONResponse:
    """A full disk and the like. The file's name is for the one who runs the server."""
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    if not isinstance(error, OSError) or error.errno not in CANNOT_STORE:
        return _unforeseen(request, error)
    detail = (
        f"the server cannot use its disk ({error.strerror}), so this was not stored; its log names the file. "
        "Make room or give the server's account the right to write, then send it again"
    )
    return JSONResponse({"detail": detail}, status_code=507 if error.errno in DISK_FULL else 503)


def _unforeseen(request: Request, error: Exception) -> JSONResponse:
    """The answer names only the kind of error: a message may hold paths or names. The server logs the trace."""
    detail = f"the server failed ({type(error).__name__}); its log holds the trace"
    return JSONResponse({"detail": detail}, status_code=500)
