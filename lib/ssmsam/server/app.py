"""The MONAI Label app without its tasks: start, configuration, studies, inference, information."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask

import ssmsam
from ssmsam.annotation.label_info import BACKGROUND
from ssmsam.annotation.label_names import known_label
from ssmsam.encoders.embedder import Embedder
from ssmsam.encoders.registry import ENCODERS, choose_encoder, load_encoder, other_choice
from ssmsam.encoders.store import EmbeddingStore
from ssmsam.encoders.weights import CorruptWeights, MissingWeights
from ssmsam.fewshot.checkpoint_registry import CheckpointRegistry
from ssmsam.fewshot.task_checkpoint import FEWSHOT
from ssmsam.imaging.writing import private_folder
from ssmsam.progress import Cancelled
from ssmsam.prompting.registry import load_decoder
from ssmsam.prompting.request import PROMPT_KEYS
from ssmsam.server.annotated import FINAL, PARTIAL, AnnotatedStudies
from ssmsam.server.background import Background
from ssmsam.server.clients.rest import CONFIRM, INFERENCE, require_keys
from ssmsam.server.configuration import (
    UNUSED_KEYS,
    Configuration,
    ConfigurationError,
    default_cache_folders,
    default_dicom_folder,
    default_heads,
)
from ssmsam.server.dicom_access import is_dicomweb, search_filters, store_access
from ssmsam.server.dicom_store import DicomStore
from ssmsam.server.dicomweb import DicomWebStudies
from ssmsam.server.errors import InvalidRequest, NotKnown, install_handlers, unforeseen
from ssmsam.server.fewshot_room import SEGMENT, FewShotRoom
from ssmsam.server.identifiers import safe_name
from ssmsam.server.images import Images, Source
from ssmsam.server.machine import choose_device, limit_arenas, use_threads
from ssmsam.server.new_folder import made_by_this_process
from ssmsam.server.outlook import Outlooks
from ssmsam.server.patient_cache import CacheFolders
from ssmsam.server.privacy import keep_patients_out_of_logs, without_uids_in
from ssmsam.server.prompted import AS_SELECTED, AS_SENT, FOR_LABEL, PROGRESS, Prompting, named
from ssmsam.server.queue import TRAIN, running
from ssmsam.server.studies import StudiesFolder
from ssmsam.server.tokens import accept_signed_tokens
from ssmsam.server.training import Training
from ssmsam.server.warmup import WarmUp
from ssmsam.service.answers import AnswerMemory
from ssmsam.service.jobs import Job, Jobs
from ssmsam.ssm.methods import DECODERS
from ssmsam.ssm.starts import Starts

logger = logging.getLogger(__name__)

GB = 10**9
_Task = TypeVar("_Task")


class ServerApp(MONAILabelApp):
    """Everything of a server except which tasks there are: a subclass names them in its class variables."""

    MODELS: ClassVar[Mapping[str, Callable[[Prompting], InferTask]]] = {}
    ADAPTIVE: ClassVar[Mapping[str, Mapping[str, Callable[[FewShotRoom], InferTask]]]] = {}
    """The models that learn from annotated slices, by the method in whose room they work."""
    TRAINERS: ClassVar[Mapping[str, Mapping[str, Callable[[FewShotRoom], TrainTask]]]] = {}
    """What is trained in processes of its own, by method."""
    STRATEGIES: ClassVar[Mapping[str, Callable[[Outlooks], Strategy]]] = {}
    SCORING: ClassVar[Mapping[str, Callable[[Outlooks], ScoringMethod]]] = {}

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str] | None = None) -> None:
        limit_arenas()
        keep_patients_out_of_logs()
        self.chosen = frozenset(conf or {})
        """The keys of the configuration that were set."""
        self.jobs = Jobs()
        try:
            adaptive = [name for tasks in self.ADAPTIVE.values() for name in tasks]
            self.configuration = Configuration.parse(conf or {}, models=(*self.MODELS, *adaptive), encoders=ENCODERS)
            chosen = choose_encoder(self.configuration.encoder, folder=self.configuration.weights)
            self.configuration = replace(self.configuration, encoder=chosen)
            self.device = choose_device(self.configuration.device)
            self._load()
        except (ConfigurationError, MissingWeights, CorruptWeights) as error:
            refuse_to_start(error)
        for key in UNUSED_KEYS & set(conf or {}):
            logger.info("--conf %s has no effect in this app", key)
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=dict(conf or {}),
            name=f"ssmsam ({ssmsam.__version__})",
            description="Annotate a few slices and get the rest: clicks and boxes to masks, on any CT or MR",
            version=ssmsam.__version__,
            labels=list(self.configuration.labels),
        )
        # scores are made when they are asked for: each run is a process that loads everything anew
        self._auto_update_scoring = False

    def _load(self) -> None:
        """The network, its decoders and the embedding store."""
        configuration = self.configuration
        threads = use_threads(configuration.threads)
        wanted: dict[str, Any] = {
            "folder": configuration.weights,
            "download": configuration.download,
            "device": self.device,
        }
        self.encoder = load_encoder(configuration.encoder, **wanted)
        self.decoder = load_decoder(configuration.encoder, **wanted)
        offered = [method for method, tasks in self.ADAPTIVE.items() if set(tasks) & set(configuration.models)]
        self.target_decoders = {
            method: DECODERS[method](configuration.encoder, **wanted)
            for method in dict.fromkeys([FEWSHOT, *offered])  # the strategies ask the first one
        }
        store = EmbeddingStore(configuration.store, quota_bytes=int(configuration.store_gb * GB))
        self.embedder = Embedder(
            encoder=self.encoder,
            store=store,
            memory_bytes=int(configuration.memory_gb * GB),
            bfloat16=configuration.bfloat16,
        )
        logger.info(
            "Encoder %s (%s) on %s, %d threads; embeddings in %s. %s",
            configuration.encoder, self.encoder.weights_sha256[:12], self.device, threads, configuration.store,
            other_choice(configuration.encoder),
        )  # fmt: skip

    def init_datastore(self) -> Datastore:
        if is_dicomweb(self.studies):
            return self._dicom_studies()
        if made_by_this_process(Path(self.studies)):
            refuse_to_start(
                ConfigurationError(
                    f"--studies {self.studies} did not exist. Correct the path, or make the folder first (mkdir) if it "
                    "is meant to be empty"
                )
            )
        return StudiesFolder(
            self.studies,
            labels=self.configuration.labels,
            named=self.configuration.labels
            if "labels" in self.chosen
            else (),  # the default ones say nothing of a file
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def _dicom_studies(self) -> Datastore:
        """The datastore of a DICOMweb server, with a local folder that belongs to its address."""
        access = store_access(self.studies)
        try:
            store = DicomStore(access)
        except ValueError as error:
            refuse_to_start(ConfigurationError(f"--studies {access.shown} is not the address of a server: {error}"))
        return DicomWebStudies(
            store,
            folder=(self.configuration.dicom_folder or default_dicom_folder())
            / hashlib.sha256(access.shown.encode()).hexdigest()[:16],
            filters=search_filters(self.configuration.modalities),
            quota_bytes=int(self.configuration.dicom_gb * GB),
            labels=self.configuration.labels,
            jobs=self.jobs,
        )

    def init_infers(self) -> dict[str, InferTask]:
        self.images = Images(
            datastore=self.datastore(),
            embedder=self.embedder,
            memory_bytes=int(self.configuration.memory_gb * GB),
        )
        self.background = Background(
            self.images,
            jobs=self.jobs,
            enabled=self.configuration.precompute,
            wanted_s=60 * self.configuration.precompute_minutes,
        )
        room = Prompting(
            images=self.images,
            datastore=self.datastore(),
            embedder=self.embedder,
            decoder=self.decoder,
            background=self.background,
            labels=self.configuration.labels,
        )
        self.answers = AnswerMemory()
        self.rooms = {method: self._room(method) for method in self.target_decoders}
        self.outlooks = Outlooks(self.rooms[FEWSHOT])
        tasks = {name: make(room) for name, make in self.MODELS.items()}
        tasks |= self._in_rooms(self.ADAPTIVE)
        return {name: task for name, task in tasks.items() if name in self.configuration.models}

    def _room(self, method: str) -> FewShotRoom:
        """The rooms share everything but the decoder and what was learned."""
        decoder, folder = self.target_decoders[method], self.configuration.heads or default_heads(self.studies)
        starts = None
        if method != FEWSHOT:
            folder = folder / method
            starts = Starts(folder / "starts", decoder, weights_sha256=self.encoder.weights_sha256)
        shelf = CheckpointRegistry(folder, method=method)
        shelf.migrate(decoder, weights_sha256=self.encoder.weights_sha256)
        return FewShotRoom(
            method=method,
            images=self.images,
            datastore=self.datastore(),
            embedder=self.embedder,
            decoder=decoder,
            starts=starts,
            background=self.background,
            shelf=shelf,
            labels=self.configuration.labels,
            jobs=self.jobs,
            answers=self.answers,
        )

    def _in_rooms(self, makers: Mapping[str, Mapping[str, Callable[[FewShotRoom], _Task]]]) -> dict[str, _Task]:
        return {
            name: make(room) for method, room in self.rooms.items() for name, make in makers.get(method, {}).items()
        }

    def init_trainers(self) -> dict[str, TrainTask]:
        return self._in_rooms(self.TRAINERS)

    def init_strategies(self) -> dict[str, Strategy]:
        return {name: make(self.outlooks) for name, make in self.STRATEGIES.items()}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        return {name: make(self.outlooks) for name, make in self.SCORING.items()}

    def on_init_complete(self) -> None:
        """The server is about to answer: mend its routes, and warm up meanwhile."""
        from monailabel.app import app as server

        from ssmsam.server.compression import compress_answers
        from ssmsam.server.exposure import close_to_other_sites
        from ssmsam.server.openapi import describe_requests
        from ssmsam.server.routes import install_routes

        super().on_init_complete()
        if (sessions := self.sessions()) is not None:
            with suppress(OSError):  # where it cannot be made, the first session says so
                private_folder(Path(sessions.store_path))
        install_routes(server)
        describe_requests(server)
        compress_answers(server)
        close_to_other_sites(server)
        install_handlers(server)
        accept_signed_tokens()
        self.warm_up = WarmUp(encoder=self.encoder, decoder=self.decoder)
        self.warm_up.start()

    def info(self) -> dict[str, Any]:
        """What viewers ask for, with one more key that they do not read; without the UIDs of anybody's images."""
        warm = getattr(self, "warm_up", None)
        found = {
            **super().info(),
            "train_stats": self._train_stats(),
            "ssmsam": {
                "encoder": self.configuration.encoder,
                "device": self.device,
                "warm": warm.done if warm else False,
                "encoded_slices": self.embedder.encoded,
                "embedding": self.background.status,
                "set_aside": [*self.images.set_aside(), *getattr(self.datastore(), "unused_labels", [])],
                "notices": list(getattr(self.datastore(), "notices", [])),
                **self.rooms[FEWSHOT].status,
                "methods": {method: room.status for method, room in self.rooms.items()},
            },
        }
        told: dict[str, Any] = without_uids_in(found)
        return told

    def cache_folders(self) -> CacheFolders:
        """Where this server keeps what can be made or downloaded again."""
        sessions = self.sessions()
        usual = default_cache_folders()
        return replace(
            usual,
            store=self.configuration.store,
            heads=(self.configuration.heads or default_heads(self.studies),),
            support=(),
            dicom=self.configuration.dicom_folder or usual.dicom,
            sessions=usual.sessions if sessions is None else Path(sessions.store_path),
        )

    def _train_stats(self) -> dict[str, Any]:
        """Of each training that there was. Viewers draw an empty entry as one that is done."""
        now = running(self.jobs.active(TRAIN))
        stats = {
            name: task.stats(runs=name in now) if isinstance(task, Training) else task.stats()
            for name, task in self._trainers.items()
        }
        return {name: found for name, found in stats.items() if found}

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Run a task. ``image`` is an id of the datastore, or a :class:`Source`; never a path.

        With ``save_label`` the mask is kept in the datastore under ``label_tag``. It is a job while it runs. Raises
        what the task raises, and InvalidRequest where the work was stopped.
        """
        task = self.require_model(str(request.get("model") or ""))
        image = request.get("image")
        source = image if isinstance(image, Source) else self.images.from_datastore(str(image or ""))
        tag = safe_name(str(request.get("label_tag") or DefaultLabelTag.ORIGINAL.value), what="a label tag")
        if request.get("save_label") and tag in (PARTIAL, FINAL):
            raise InvalidRequest(f"only a person's work is kept under {tag!r}: choose another label_tag, or 'original'")
        options = named(self.with_known_labels(request, source.image_id))
        client = str(request.get("client_id") or "")
        job = Job(
            SEGMENT,
            title=f"{request['model']} on {source.name}",
            owner=client,
            image=source.image_id,
            model=str(request["model"]),
            brief=True,
        )
        options |= {"image": source, "description": task.description, PROGRESS: job.progress}
        try:
            with self.background.giving_way(), self.jobs.running(job):
                path, details = task(options)
        except Cancelled:
            if not job.cancelled:  # a batch that all this belongs to
                raise
            raise InvalidRequest("the work was cancelled: run the model again to start it anew") from None
        self.background.prefer(source, client=client)
        label = path
        if path and request.get("save_label"):
            if not source.image_id:
                raise InvalidRequest("save_label needs an image of the datastore")
            label = (datastore or self.datastore()).save_label(
                source.image_id, path, tag, {"model": request["model"], "params": details}
            )
        return {"label": label, "tag": tag, "file": path, "params": details}

    def batch_infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Run a task on many images: image -> its result. One that fails has ``error`` instead and stops no other."""
        found: dict[str, Any] = self._batch_infer(request, datastore or self.datastore(), self._infer_or_say)
        return found

    def _infer_or_say(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        try:
            return self.infer(request, datastore)
        except Cancelled:
            raise
        except Exception as error:
            hidden = unforeseen(error)
            logger.warning("Batch inference of %s failed: %s", request.get("image"), error, exc_info=hidden)
            return {"error": f"it failed ({type(error).__name__}): see the log" if hidden else str(error)}

    def with_known_labels(self, request: Mapping[str, Any], image_id: str = "") -> dict[str, Any]:
        """A request with its labels under the names by which they are known, and :data:`AS_SENT`, how it was spelt."""
        datastore, found = self.datastore(), dict(request)
        if not isinstance(datastore, AnnotatedStudies):
            return found
        known = datastore.label_names(image_id)
        for name in ("label", FOR_LABEL):
            sent = found.get(name)
            if isinstance(sent, str) and sent != AS_SELECTED:
                found[name] = known_label(sent, known) if sent.strip() else ""
        sent, label = request.get("label"), found.get("label")
        if sent and sent != label:
            found[AS_SENT] = sent
            if sent in found and sent not in PROMPT_KEYS:  # clicks under the label's own name
                found[str(label)] = found.pop(str(sent))
        wanted = found.get("labels")
        names = wanted.split(",") if isinstance(wanted, str) else wanted
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            found["labels"] = [known_label(name, known) for name in names if name.strip()]
        return found

    def require_options(self, options: Mapping[str, Any], task: InferTask) -> None:
        """Refuse keys that nobody reads. Raises InvalidRequest."""
        labels = {*self.rooms[FEWSHOT].offered, BACKGROUND, str(options.get("label"))}
        rest = {name: value for name, value in options.items() if name not in labels}
        require_keys(rest, [*INFERENCE, *task.config(), *CONFIRM], where="params")

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """The next image by ``strategy``; {} when none is left, perhaps with a ``message``. A remote store fetches it.

        Where the strategy names ``slices`` too (with ``axis`` of the client's [i, j, k], 2 unless told, and perhaps
        ``slices_by_label``), they are noted as assigned to the client: what it submits then is truth on them, empty
        or not.
        """
        request = self.with_known_labels(request)
        found = self.require_strategy(str(request.get("strategy") or ""))(request, self.datastore()) or {}
        if not found.get("id"):
            return {name: text for name, text in found.items() if name == "message"}
        found = {**found, "path": str(self.images.from_datastore(found["id"]).path)}
        if found.get("slices") and isinstance(self.datastore(), AnnotatedStudies):
            found["assignments"] = self._assign(found, client=str(request.get("client_id") or ""))
        return found

    def _assign(self, found: dict[str, Any], *, client: str) -> list[str]:
        """Note what a client is asked for, each label with its own slices; the names of the assignments."""
        axis = 2 - int(found.setdefault("axis", 2))
        wanted = [([label], slices) for label, slices in (found.get("slices_by_label") or {}).items()]
        datastore = self.datastore()
        assert isinstance(datastore, AnnotatedStudies)
        return [
            datastore.assign(found["id"], slices, axis=axis, labels=labels, client=client).id
            for labels, slices in wanted or [(found.get("labels") or [], found["slices"])]
        ]

    def require_model(self, name: str) -> InferTask:
        """The task of this name. Raises NotKnown."""
        if name not in self._infers:
            raise NotKnown("model", name, self._infers)
        task: InferTask = self._infers[name]
        return task

    @property
    def trainers(self) -> Mapping[str, TrainTask]:
        """The train tasks by name."""
        return self._trainers

    def require_trainer(self, name: str) -> TrainTask:
        """The train task of this name. Raises NotKnown."""
        if name not in self._trainers:
            raise NotKnown("train task", name, self._trainers)
        task: TrainTask = self._trainers[name]
        return task

    def require_room(self, method: str) -> FewShotRoom:
        """The room of a method that learns from annotated slices. Raises NotKnown."""
        if method not in self.rooms:
            raise NotKnown("method", method, self.rooms)
        return self.rooms[method]

    def require_strategy(self, name: str) -> Strategy:
        """The strategy of this name. Raises NotKnown."""
        if name not in self._strategies:
            raise NotKnown("strategy", name, self._strategies)
        strategy: Strategy = self._strategies[name]
        return strategy

    def model_file(self, model: str, validate: bool = True) -> str:
        self.require_model(model)
        raise NotKnown("file for model", model, step="Weights are chosen at start, with --conf encoder and weights")


def refuse_to_start(error: Exception) -> NoReturn:
    """End the process with a message that a user can act on.

    Inside the server's start an exception would be shown as a long trace and lose its message, so the process ends
    here. Elsewhere the caller gets the exception.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise error from None
    print(f"\nssmsam does not start: {error}", file=sys.stderr, flush=True)
    logging.shutdown()
    os._exit(2)
