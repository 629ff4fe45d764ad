"""Our routes in the place of those stock routes that block the server, or that believe what a request says.

MONAI Label's routes are ``async def`` around code that waits: one inference stops every other request. Ours are
plain functions, which FastAPI runs in threads, and they check what they are given before they pass it on.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

from fastapi import FastAPI
from monailabel.endpoints import (
    activelearning,
    batch_infer,
    datastore,
    infer,
    info,
    ohif,
    proxy,
    scoring,
    session,
    train,
    wsi_infer,
)
from monailabel.endpoints import logs as stock_logs

from ssmsam.server.routes import (
    cache,
    heads,
    inference,
    jobs,
    logs,
    proxied,
    reference,
    sessions,
    slices,
    starts,
    studies,
    tasks,
    viewer,
)


@dataclass(frozen=True)
class Stock:
    """Routes of MONAI Label: all those of one of its modules with this path and one of these methods."""

    module: ModuleType
    path: str
    methods: frozenset[str]


def _stock(module: ModuleType, path: str, methods: str) -> Stock:
    return Stock(module, path, frozenset(methods.split()))


REPLACED = (
    _stock(infer, "/infer/{model}", "POST"),
    _stock(batch_infer, "/batch/infer/{model}", "POST"),
    _stock(batch_infer, "/batch/infer", "DELETE"),
    _stock(info, "/info/", "GET"),
    _stock(activelearning, "/activelearning/{strategy}", "POST"),
    _stock(train, "/train/{model}", "POST"),
    _stock(train, "/train/", "POST DELETE"),
    _stock(scoring, "/scoring/{method}", "POST"),
    _stock(scoring, "/scoring/", "POST"),
    _stock(datastore, "/datastore/", "GET PUT DELETE"),
    _stock(datastore, "/datastore/image", "GET HEAD PUT DELETE"),
    _stock(datastore, "/datastore/image/info", "GET PUT"),
    _stock(datastore, "/datastore/label", "GET HEAD PUT DELETE"),
    _stock(datastore, "/datastore/label/info", "GET PUT"),
    _stock(datastore, "/datastore/updatelabelinfo", "PUT"),
    _stock(datastore, "/datastore/dataset", "GET"),
    _stock(session, "/session/", "PUT"),
    _stock(session, "/session/{session_id}", "GET DELETE"),
    _stock(stock_logs, "/logs/", "GET"),
    _stock(stock_logs, "/logs/gpu", "GET"),
    _stock(ohif, "/ohif/{path:path}", "GET"),
    *(_stock(proxy, f"/proxy/dicom/{op}{{path:path}}", "GET POST") for op in ("", "wado/", "qido/", "stow/")),
)

REMOVED = (
    # whole-slide pathology: this app has no such model, and the routes read any path that a request names
    _stock(wsi_infer, "/infer/wsi/{model}", "POST"),
    _stock(wsi_infer, "/infer/wsi_v2/{model}", "POST"),
)

OURS = (
    cache.router,
    heads.router,
    inference.router,
    jobs.router,
    logs.router,
    tasks.router,
    studies.router,
    slices.router,
    sessions.router,
    starts.router,
    proxied.router,
    viewer.router,
    reference.router,
)


def install_routes(app: FastAPI) -> None:
    """Take the stock routes out and put ours in. Raises RuntimeError when MONAI Label no longer has one of them."""
    for stock in (*REPLACED, *REMOVED):
        _remove(app, stock)
    # anybody could make the server build itself a second time; the pages need the internet
    app.router.routes[:] = [r for r in app.router.routes if getattr(r, "path", "") not in ("/reload", "/", "/docs")]
    for router in OURS:
        app.include_router(router)
    app.openapi_schema = None


def _remove(app: FastAPI, stock: Stock) -> None:
    """Depending on FastAPI's version, the app looks into the module's router or holds copies of its routes."""
    known = [route for route in stock.module.router.routes if _fits(route, stock)]
    endpoints = {route.endpoint for route in known}
    found = {method for route in known for method in route.methods}
    if not stock.methods <= found:
        missing = ", ".join(sorted(stock.methods - found))
        raise RuntimeError(
            f"MONAI Label has no route {missing} {stock.path} to replace: this version of it does not fit this app; "
            "install the versions in requirements.txt"
        )
    for routes in (stock.module.router.routes, app.router.routes):
        routes[:] = [r for r in routes if getattr(r, "endpoint", None) not in endpoints or not _fits(r, stock)]


def _fits(route: Any, stock: Stock) -> bool:
    return getattr(route, "path", None) == stock.path and bool(set(getattr(route, "methods", ()) or ()) & stock.methods)
