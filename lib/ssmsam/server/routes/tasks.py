"""Information, next samples, and the work that MONAI Label starts in processes of its own."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from monailabel.endpoints import batch_infer as stock_batch
from monailabel.endpoints import scoring as stock_scoring
from monailabel.endpoints import train as stock_train
from monailabel.interfaces.tasks.batch_infer import BatchInferImageType

from ssmsam.server.clients.rest import CLIENT, SAMPLE, STOCK, require_keys
from ssmsam.server.errors import NotKnown
from ssmsam.server.identifiers import safe_name
from ssmsam.server.queue import drop_queued
from ssmsam.server.routes.common import Admin, Annotator, AnyUser, CheckedJson, note_opened, reader, the_app
from ssmsam.server.strategies import note_offer
from ssmsam.server.training import Training

router = APIRouter(route_class=CheckedJson)


@router.get("/info/", tags=["App"], summary="What this app offers")
def info(user: AnyUser) -> dict[str, Any]:
    return the_app().info()


@router.post("/activelearning/{strategy}", tags=["ActiveLearning"], summary="The next image and slices to annotate")
def next_sample(user: AnyUser, strategy: str, request: Request, params: dict[str, Any] | None = None) -> dict[str, Any]:
    """Without an ``id`` in the answer nothing is left, and ``message`` says so."""
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
def batch_infer(
    user: Admin,
    model: str,
    images: BatchInferImageType | None = BatchInferImageType.IMAGES_ALL,
    params: dict[str, Any] | None = None,
    run_sync: bool = False,
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
    return stock_batch.run(model, images, options, run_sync)


@router.post("/train/{model}", tags=["Train"], summary="Train a model")
def train(
    user: Admin, model: str, params: dict[str, Any] | None = None, run_sync: bool = False, enqueue: bool = False
) -> Any:
    task = the_app().require_trainer(model)
    require_keys(params or {}, [*CLIENT, *STOCK, *task.config()], where="the request")
    if isinstance(task, Training):
        task.require(params or {})  # its process could only end with an error that nobody reads
    return stock_train.run_model(model, params, run_sync, enqueue)


@router.post("/train/", tags=["Train"], summary="Train all models, one after the other", deprecated=True)
def train_all(user: Admin, params: dict[str, Any] | None = None, run_sync: bool = False) -> Any:
    """``params`` holds the options of each trainer under its name."""
    trainers = the_app().trainers
    require_keys(params or {}, [*CLIENT, *trainers], where="the request")
    for name, task in trainers.items():
        require_keys((params or {}).get(name) or {}, [*CLIENT, *STOCK, *task.config()], where=name)
    return stock_train.run(params, run_sync)


@router.delete("/train/", tags=["Train"], summary="Stop training, and what waits to be trained")
def stop_training(user: Admin) -> Any:
    """The stopped task, the running one if any; ``queued`` says how many were taken from the queue."""
    queued = drop_queued("train")
    stopped = stock_train.stop()
    return {**stopped, "queued": len(queued)} if stopped else (queued[0] if queued else None)


@router.post("/scoring/{method}", tags=["Scoring"], summary="Score labels")
def score(user: Annotator, method: str, params: dict[str, Any] | None = None, run_sync: bool = False) -> Any:
    known = the_app().info()["scoring"]
    if method not in known:
        raise NotKnown("scoring method", method, known)
    return stock_scoring.run_method(method, params, run_sync)
