"""Information, next samples, and the work that MONAI Label starts in processes of its own."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, HTTPException, Request
from monailabel.interfaces.tasks.batch_infer import BatchInferImageType

from ssmsam.server.app import ServerApp
from ssmsam.server.clients.rest import CLIENT, SAMPLE, STOCK, require_keys
from ssmsam.server.clients.slicer import title
from ssmsam.server.routes.common import (
    Admin,
    Annotator,
    AnyUser,
    App,
    CheckedJson,
    long,
    note_opened,
    reader,
)
from ssmsam.server.tasks.queue import BATCH, SCORE, TRAIN, ProcessJob, stop, submit
from ssmsam.server.tasks.strategies import note_offer
from ssmsam.service.errors import NotKnown
from ssmsam.service.identifiers import safe_name
from ssmsam.service.jobs import Job

router = APIRouter(route_class=CheckedJson)


@router.get("/info/", tags=["App"], summary="What this app offers")
def info(app: App, user: AnyUser) -> dict[str, Any]:
    return app.info()


@router.post("/activelearning/{strategy}", tags=["ActiveLearning"], summary="The next image and slices to annotate")
@long
def next_sample(
    app: App, user: AnyUser, strategy: str, request: Request, params: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Without an ``id`` in the answer nothing is left, and ``message`` says so."""
    asked = dict(params or {})
    app.require_strategy(strategy)
    require_keys(asked, SAMPLE, where="the request")
    name = asked.get("client_id") or user.username
    client = reader(name, request)
    found = app.next_sample({**asked, "strategy": strategy, "client_id": client})
    if not found.get("id"):
        return found
    if not asked.get("image"):  # a viewer opens what it is offered; one that names an image has it open
        note_opened(app, found["id"], request, name or "")
    info = note_offer(app.datastore(), found["id"], strategy, client=client)
    slices = found.get("slices") if found.get("axis", 2) == 2 else None  # those that are embedded
    app.background.prefer(found["id"], near=slices[0] if slices else None, client=client)
    shown = {**found, **info}
    if found.get("hint") and info.get("PatientID"):  # a viewer shows this as the volume's name
        shown["PatientID"] = title(info["PatientID"], found["hint"])
    return shown


@router.post("/batch/infer/{model}", tags=["Infer"], summary="Run a model on many images")
@long
def batch_infer(
    app: App,
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
    app.require_options({} if params is None else params, app.require_model(model))
    # the stock defaults are for GPUs only: without one they divide by the number of GPUs
    options = {"device": app.device, "multi_gpu": False, "max_workers": 1, "save_label": True, **(params or {})}
    options.pop("model", None)
    if isinstance(options.get("images"), list):
        options["images"] = [app.images.require(str(image)) for image in options["images"]]
    if "label_tag" in options:
        safe_name(str(options["label_tag"]), what="a label tag")
    wanted = {"model": model, "images": images or BatchInferImageType.IMAGES_ALL, **options}
    return _run(app, BATCH, wanted, request, run_sync=run_sync)


@router.delete("/batch/infer", tags=["Infer"], summary="Stop the batch inference, and those that wait")
def stop_batch(app: App, user: Admin) -> Any:
    """The stopped task, the running one if any."""
    stopped = stop(app.jobs, BATCH)
    return stopped[0] if stopped else None


@router.post("/train/{model}", tags=["Train"], summary="Train a model")
@long
def train(
    app: App,
    user: Admin,
    request: Request,
    model: str,
    params: dict[str, Any] | None = None,
    run_sync: bool = False,
    enqueue: bool = False,
) -> Any:
    """In a process of its own, which is a job as batches are; ``enqueue`` lets it wait for the one that runs."""
    task = app.require_trainer(model)
    require_keys(params or {}, [*CLIENT, *STOCK, *task.config()], where="the request")
    task.require(params or {})  # its process could only end with an error that nobody reads
    return _run(app, TRAIN, {"model": model, **(params or {})}, request, run_sync=run_sync, enqueue=enqueue)


@router.delete("/train/", tags=["Train"], summary="Stop training, and what waits to be trained")
def stop_training(app: App, user: Admin) -> Any:
    """The stopped task, the running one if any; ``queued`` says how many were taken from the queue."""
    stopped = stop(app.jobs, TRAIN)
    ran = [task for task in stopped if "details" in task]
    return {**stopped[0], "queued": len(stopped) - 1} if ran else (stopped[0] if stopped else None)


@router.post("/scoring/{method}", tags=["Scoring"], summary="Score labels")
@long
def score(
    app: App,
    user: Annotator,
    request: Request,
    method: str,
    params: dict[str, Any] | None = None,
    run_sync: bool = False,
) -> Any:
    known = app.info()["scoring"]
    if method not in known:
        raise NotKnown("scoring method", method, known)
    return _run(app, SCORE, {"method": method, **(params or {})}, request, run_sync=run_sync)


def _run(
    app: ServerApp,
    kind: str,
    wanted: dict[str, Any],
    request: Request,
    *,
    run_sync: bool = False,
    enqueue: bool = False,
) -> Any:
    """Work that MONAI Label does in a process of its own, or with ``run_sync`` here; its task, or what came of it.

    As in MONAI Label one that runs already is 429, unless it is to be queued.
    """
    if app.jobs.active(kind) and not enqueue:
        raise HTTPException(429, f"a task of this kind ({kind}) is already running: wait for it, or see GET /jobs")
    owner = reader(wanted.get("client_id"), request)
    if run_sync:
        here = {TRAIN: app.train, BATCH: app.batch_infer, SCORE: app.scoring}[kind]
        job = Job(kind, title=f"{kind} in a request", model=str(wanted.get("model") or ""), brief=True, owner=owner)
        with app.jobs.running(job):
            return here(wanted)
    measure = app.require_trainer(wanted["model"]).stats if kind == TRAIN else dict
    return submit(app.jobs, ProcessJob(kind, wanted, measure=measure, owner=owner))
