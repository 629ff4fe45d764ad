"""Information, next samples, and the work that MONAI Label starts in processes of its own."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, HTTPException, Request
from monailabel.endpoints.user.auth import User
from monailabel.interfaces.tasks.batch_infer import BatchInferImageType

from ssmsam.server.clients.rest import CLIENT, SAMPLE, STOCK, require_keys
from ssmsam.server.errors import NotKnown
from ssmsam.server.identifiers import safe_name
from ssmsam.server.queue import BATCH, SCORE, TRAIN, ProcessJob, stop, submit
from ssmsam.server.routes.common import (
    Admin,
    Annotator,
    AnyUser,
    CheckedJson,
    note_opened,
    reader,
    the_app,
    watched,
)
from ssmsam.server.strategies import note_offer
from ssmsam.server.training import Training
from ssmsam.service.jobs import Job

router = APIRouter(route_class=CheckedJson)


@router.get("/info/", tags=["App"], summary="What this app offers")
def info(user: AnyUser) -> dict[str, Any]:
    return the_app().info()


@router.post("/activelearning/{strategy}", tags=["ActiveLearning"], summary="The next image and slices to annotate")
async def next_sample(
    user: AnyUser, strategy: str, request: Request, params: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Without an ``id`` in the answer nothing is left, and ``message`` says so."""
    return await watched(request, lambda: _next_sample(user, strategy, request, params))


def _next_sample(user: User, strategy: str, request: Request, params: dict[str, Any] | None) -> dict[str, Any]:
    app, asked = the_app(), dict(params or {})
    app.require_strategy(strategy)
    require_keys(asked, SAMPLE, where="the request")
    name = asked.get("client_id") or user.username
    client = reader(name, request)
    found = app.next_sample({**asked, "strategy": strategy, "client_id": client})
    if not found.get("id"):
        return found
    if not asked.get("image"):  # a viewer opens what it is offered; one that names an image has it open
        note_opened(found["id"], request, name or "")
    info = note_offer(app.datastore(), found["id"], strategy, client=client)
    slices = found.get("slices") if found.get("axis", 2) == 2 else None  # those that are embedded
    app.background.prefer(found["id"], near=slices[0] if slices else None, client=client)
    shown = {**found, **info}
    if found.get("hint") and info.get("PatientID"):  # a viewer shows this as the volume's name
        shown["PatientID"] = f"{info['PatientID']} | {found['hint']}"
    return shown


@router.post("/batch/infer/{model}", tags=["Infer"], summary="Run a model on many images")
async def batch_infer(
    user: Admin,
    request: Request,
    model: str,
    images: BatchInferImageType | None = BatchInferImageType.IMAGES_ALL,
    params: dict[str, Any] | None = None,
    run_sync: bool = False,
) -> Any:
    """In a process of its own, which is a job: ``GET /jobs/{id}`` with the ``id`` of the answer says how many images
    are done, and ``DELETE`` ends it. With ``run_sync`` the answer comes when all is done, and who hangs up ends it.
    """
    return await watched(request, lambda: _batch_infer(request, model, images, params, run_sync))


def _batch_infer(
    request: Request,
    model: str,
    images: BatchInferImageType | None,
    params: dict[str, Any] | None,
    run_sync: bool,
) -> Any:
    app = the_app()
    app.require_options({} if params is None else params, app.require_model(model))
    # the stock defaults are for GPUs only: without one they divide by the number of GPUs
    options = {"device": app.device, "multi_gpu": False, "max_workers": 1, "save_label": True, **(params or {})}
    options.pop("model", None)
    if isinstance(options.get("images"), list):
        options["images"] = [app.images.require(str(image)) for image in options["images"]]
    if "label_tag" in options:
        safe_name(str(options["label_tag"]), what="a label tag")
    wanted = {"model": model, "images": images or BatchInferImageType.IMAGES_ALL, **options}
    return _run(BATCH, wanted, request, run_sync=run_sync)


@router.delete("/batch/infer", tags=["Infer"], summary="Stop the batch inference, and those that wait")
def stop_batch(user: Admin) -> Any:
    """The stopped task, the running one if any."""
    stopped = stop(the_app().jobs, BATCH)
    return stopped[0] if stopped else None


@router.post("/train/{model}", tags=["Train"], summary="Train a model")
async def train(
    user: Admin,
    request: Request,
    model: str,
    params: dict[str, Any] | None = None,
    run_sync: bool = False,
    enqueue: bool = False,
) -> Any:
    """In a process of its own, which is a job as batches are; ``enqueue`` lets it wait for the one that runs."""
    return await watched(request, lambda: _train(request, model, params, run_sync, enqueue))


def _train(request: Request, model: str, params: dict[str, Any] | None, run_sync: bool, enqueue: bool) -> Any:
    task = the_app().require_trainer(model)
    require_keys(params or {}, [*CLIENT, *STOCK, *task.config()], where="the request")
    if isinstance(task, Training):
        task.require(params or {})  # its process could only end with an error that nobody reads
    return _run(TRAIN, {"model": model, **(params or {})}, request, run_sync=run_sync, enqueue=enqueue)


@router.post("/train/", tags=["Train"], summary="Train all models, one after the other", deprecated=True)
async def train_all(user: Admin, request: Request, params: dict[str, Any] | None = None, run_sync: bool = False) -> Any:
    """``params`` holds the options of each trainer under its name."""
    return await watched(request, lambda: _train_all(request, params or {}, run_sync))


def _train_all(request: Request, params: dict[str, Any], run_sync: bool) -> Any:
    trainers = the_app().trainers
    require_keys(params, [*CLIENT, *trainers], where="the request")
    for name, task in trainers.items():
        require_keys(params.get(name) or {}, [*CLIENT, *STOCK, *task.config()], where=name)
    common = {name: value for name, value in params.items() if name in CLIENT}
    wanted = {name: {"model": name, **common, **(params.get(name) or {})} for name in trainers}
    return {
        name: {"result": _run(TRAIN, one, request, run_sync=run_sync, enqueue=True), "detail": None}
        for name, one in wanted.items()
    }


@router.delete("/train/", tags=["Train"], summary="Stop training, and what waits to be trained")
def stop_training(user: Admin) -> Any:
    """The stopped task, the running one if any; ``queued`` says how many were taken from the queue."""
    stopped = stop(the_app().jobs, TRAIN)
    ran = [task for task in stopped if "details" in task]
    return {**stopped[0], "queued": len(stopped) - 1} if ran else (stopped[0] if stopped else None)


@router.post("/scoring/{method}", tags=["Scoring"], summary="Score labels")
async def score(
    user: Annotator, request: Request, method: str, params: dict[str, Any] | None = None, run_sync: bool = False
) -> Any:
    return await watched(request, lambda: _score(request, method, params, run_sync))


def _score(request: Request, method: str, params: dict[str, Any] | None, run_sync: bool) -> Any:
    known = the_app().info()["scoring"]
    if method not in known:
        raise NotKnown("scoring method", method, known)
    return _run(SCORE, {"method": method, **(params or {})}, request, run_sync=run_sync)


def _run(kind: str, wanted: dict[str, Any], request: Request, *, run_sync: bool = False, enqueue: bool = False) -> Any:
    """Work that MONAI Label does in a process of its own, or with ``run_sync`` here; its task, or what came of it.

    As in MONAI Label one that runs already is 429, unless it is to be queued.
    """
    app = the_app()
    if app.jobs.active(kind) and not enqueue:
        raise HTTPException(429, f"a task of this kind ({kind}) is already running: wait for it, or see GET /jobs")
    owner = reader(wanted.get("client_id"), request)
    if run_sync:
        here = {TRAIN: app.train, BATCH: app.batch_infer, SCORE: app.scoring}[kind]
        job = Job(kind, title=f"{kind} in a request", model=str(wanted.get("model") or ""), brief=True, owner=owner)
        with app.jobs.running(job):
            return here(wanted)
    trainer = app.trainers.get(str(wanted.get("model"))) if kind == TRAIN else None
    return submit(app.jobs, ProcessJob(kind, wanted, measure=trainer.stats if trainer else dict, owner=owner))


@router.post("/scoring/", tags=["Scoring"], summary="Score labels by all methods", deprecated=True)
async def score_all(
    user: Annotator, request: Request, params: dict[str, Any] | None = None, run_sync: bool = False
) -> Any:
    """``params`` holds the options of each method under its name."""
    return await watched(request, lambda: _score_all(request, params or {}, run_sync))


def _score_all(request: Request, params: dict[str, Any], run_sync: bool) -> Any:
    wanted = {name: {"method": name, **(params.get(name) or {})} for name in the_app().info()["scoring"]}
    return {
        name: {"result": _run(SCORE, one, request, run_sync=run_sync, enqueue=True), "detail": None}
        for name, one in wanted.items()
    }
