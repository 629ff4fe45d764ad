"""The MONAI Label app without its tasks: start, configuration, studies, inference, information."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy

import ssmsam
from ssmsam.annotation.labels import BACKGROUND
from ssmsam.cluster import Program, open_engine, run_elsewhere
from ssmsam.dicom.web import DicomStore
from ssmsam.embeddings.embedder import Embedder
from ssmsam.embeddings.store import EmbeddingStore
from ssmsam.fewshot.checkpoint_registry import CheckpointRegistry, Initialisations
from ssmsam.fewshot.motion import steps_ahead
from ssmsam.fewshot.task_checkpoint import FEWSHOT
from ssmsam.models.registry import DECODERS, ENCODERS, choose_encoder, load_decoder, load_encoder, other_choice
from ssmsam.models.weights import CorruptWeights, MissingWeights
from ssmsam.paths import CacheFolders, default_cache_folders, default_checkpoints, default_dicom_folder
from ssmsam.progress import Cancelled, Turns
from ssmsam.server.clients.rest import CONFIRM, INFERENCE, InferenceCommand, require_keys
from ssmsam.server.clients.slicer import with_known_labels
from ssmsam.server.configuration import UNUSED_KEYS, Configuration
from ssmsam.server.datastore.access import is_dicomweb, search_filters, store_access
from ssmsam.server.datastore.studies import DicomWebStudies, StudiesDatastore, StudiesFolder
from ssmsam.server.errors import unforeseen
from ssmsam.server.monailabel_patches import (
    WORKER,
    end_with_parent,
    is_worker,
    made_by_this_process,
    refuse_to_start,
)
from ssmsam.server.privacy import keep_patients_out_of_logs, without_uids_in
from ssmsam.server.tasks.queue import TRAIN, running
from ssmsam.server.tasks.training import Training
from ssmsam.service.background import Background
from ssmsam.service.errors import ConfigurationError, InvalidRequest, NotKnown
from ssmsam.service.fewshot_service import SEGMENT, FewShotService, answer_cache
from ssmsam.service.images import Images, Source
from ssmsam.service.jobs import Job, Jobs
from ssmsam.service.machine import choose_device, give_way, limit_arenas, memory_in_use, use_threads
from ssmsam.service.prompt_service import PromptService
from ssmsam.service.volume_forecasts import VolumeForecasts

logger = logging.getLogger(__name__)

GB = 10**9
_Task = TypeVar("_Task")


class ServerApp(MONAILabelApp):
    """Everything of a server except which tasks there are: a subclass names them in its class variables."""

    MODELS: ClassVar[Mapping[str, Callable[[PromptService], InferTask]]] = {}
    ADAPTIVE: ClassVar[Mapping[str, Mapping[str, Callable[[FewShotService], InferTask]]]] = {}
    """The models that learn from annotated slices, by the method that they belong to."""
    TRAINERS: ClassVar[Mapping[str, Mapping[str, Callable[[FewShotService], Training]]]] = {}
    """What is trained in processes of its own, by method."""
    STRATEGIES: ClassVar[Mapping[str, Callable[[VolumeForecasts], Strategy]]] = {}
    SCORING: ClassVar[Mapping[str, Callable[[VolumeForecasts], ScoringMethod]]] = {}

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str] | None = None) -> None:
        limit_arenas()
        keep_patients_out_of_logs()
        if is_worker():
            end_with_parent()
            give_way()
        self.chosen = frozenset(conf or {})
        """The keys of the configuration that were set."""
        self.jobs = Jobs()
        try:
            adaptive = [name for tasks in self.ADAPTIVE.values() for name in tasks]
            self.configuration = Configuration.parse(conf or {}, models=(*self.MODELS, *adaptive), encoders=ENCODERS)
            chosen = choose_encoder(self.configuration.encoder, folder=self.configuration.weights)
            self.configuration = self.configuration.model_copy(update={"encoder": chosen})
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
        self.jobs.turns = Turns(max(1, (os.cpu_count() or 1) // threads))
        wanted: dict[str, Any] = dict(folder=configuration.weights, download=configuration.download, device=self.device)
        self.encoder = load_encoder(configuration.encoder, **wanted)
        self.decoder = load_decoder(configuration.encoder, **wanted)
        offered = [method for method, tasks in self.ADAPTIVE.items() if set(tasks) & set(configuration.models)]
        self.target_decoders = {
            method: DECODERS[method](configuration.encoder, **wanted)
            for method in dict.fromkeys([FEWSHOT, *offered])  # the strategies ask the first one
        }
        self.embedder = Embedder(
            encoder=self.encoder,
            store=EmbeddingStore(configuration.store, quota_bytes=int(configuration.store_gb * GB)),
            memory_bytes=int(configuration.memory_gb * GB),
            bfloat16=configuration.bfloat16,
        )
        logger.info(
            "Encoder %s (%s) on %s, %d threads; embeddings in %s. %s",
            configuration.encoder, self.encoder.weights_sha256[:12], self.device, threads, configuration.store,
            other_choice(configuration.encoder),
        )  # fmt: skip

    def datastore(self) -> StudiesDatastore:
        datastore: StudiesDatastore = self._datastore
        return datastore

    def init_datastore(self) -> StudiesDatastore:
        if is_dicomweb(self.studies):
            return self._dicom_studies()
        if made_by_this_process(Path(self.studies)):
            step = "Correct the path, or make the folder first (mkdir) if it is meant to be empty"
            refuse_to_start(ConfigurationError(f"--studies {self.studies} did not exist. {step}"))
        return StudiesFolder(
            self.studies,
            labels=self.configuration.labels,
            # the default ones say nothing of a file
            named=self.configuration.labels if "labels" in self.chosen else (),
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def _dicom_studies(self) -> StudiesDatastore:
        """The datastore of a DICOMweb server, with a local folder that belongs to its address."""
        access = store_access(self.studies)
        try:
            store = DicomStore(access)
        except ValueError as error:
            refuse_to_start(ConfigurationError(f"--studies {access.name} is not the address of a server: {error}"))
        studies = DicomWebStudies(
            store,
            folder=(self.configuration.dicom_folder or default_dicom_folder())
            / hashlib.sha256(access.name.encode()).hexdigest()[:16],
            filters=search_filters(self.configuration.modalities),
            quota_bytes=int(self.configuration.dicom_gb * GB),
            labels=self.configuration.labels,
            jobs=self.jobs,
        )
        if not is_worker():
            studies.deliver_later()
        return studies

    def init_infers(self) -> dict[str, InferTask]:
        memory_bytes = int(self.configuration.memory_gb * GB)
        self.images = Images(files=self.datastore().files, embedder=self.embedder, memory_bytes=memory_bytes)
        self.background = Background(
            self.images,
            jobs=self.jobs,
            enabled=self.configuration.precompute,
            wanted_s=60 * self.configuration.precompute_minutes,
            steps_ahead=steps_ahead if self.target_decoders[FEWSHOT].moving else None,
        )
        prompting = PromptService(
            images=self.images,
            studies=self.datastore(),
            embedder=self.embedder,
            decoder=self.decoder,
            background=self.background,
            labels=self.configuration.labels,
        )
        self.answers = answer_cache()
        self.services = {method: self._service(method) for method in self.target_decoders}
        self.forecasts = VolumeForecasts(self.services[FEWSHOT])
        tasks = {name: make(prompting) for name, make in self.MODELS.items()}
        tasks |= self._with_services(self.ADAPTIVE)
        return {name: task for name, task in tasks.items() if name in self.configuration.models}

    def _service(self, method: str) -> FewShotService:
        """The services share everything but the decoder and what was learned."""
        decoder, folder = self.target_decoders[method], self.configuration.heads or default_checkpoints(self.studies)
        initialisations = None
        if method != FEWSHOT:
            folder = folder / method
            initialisations = Initialisations(folder / "starts", decoder, weights_sha256=self.encoder.weights_sha256)
        return FewShotService(
            method=method,
            images=self.images,
            studies=self.datastore(),
            embedder=self.embedder,
            decoder=decoder,
            initialisations=initialisations,
            background=self.background,
            registry=CheckpointRegistry(folder, method=method),
            labels=self.configuration.labels,
            jobs=self.jobs,
            answers=self.answers,
        )

    def _with_services(self, makers: Mapping[str, Mapping[str, Callable[[FewShotService], _Task]]]) -> dict[str, _Task]:
        return {
            name: make(service)
            for method, service in self.services.items()
            for name, make in makers.get(method, {}).items()
        }

    def init_trainers(self) -> dict[str, Training]:
        return self._with_services(self.TRAINERS)

    def init_strategies(self) -> dict[str, Strategy]:
        return {name: make(self.forecasts) for name, make in self.STRATEGIES.items()}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        return {name: make(self.forecasts) for name, make in self.SCORING.items()}

    def info(self) -> dict[str, Any]:
        """What viewers ask for, with one more key that they do not read; without the UIDs of anybody's images."""
        warming = getattr(self, "warming", None)
        with self.datastore().one_look():
            found = {**super().info(), "train_stats": self._train_stats()}
            found["ssmsam"] = {
                "encoder": self.configuration.encoder,
                "device": self.device,
                "warm": warming is not None and not warming.is_alive(),
                "memory_bytes": memory_in_use(),
                "encoded_slices": self.embedder.encoded,
                "embedding": self.background.status,
                "set_aside": [*self.images.set_aside(), *self.datastore().unused_labels],
                "notices": list(self.datastore().files.notices),
                **self.services[FEWSHOT].status,
                "methods": {method: service.status for method, service in self.services.items()},
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
            checkpoints=(self.configuration.heads or default_checkpoints(self.studies),),
            support=(),
            dicom=self.configuration.dicom_folder or usual.dicom,
            sessions=usual.sessions if sessions is None else Path(sessions.store_path),
        )

    def _train_stats(self) -> dict[str, Any]:
        """Of each training that there was. Viewers draw an empty entry as one that is done."""
        now = running(self.jobs.active(TRAIN))
        stats = {name: task.stats(runs=name in now) for name, task in self._trainers.items()}
        return {name: found for name, found in stats.items() if found}

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Run a task on an image of the datastore, for MONAI Label's own code. See :meth:`run`."""
        return self.run(self.command(request, self.images.from_datastore(str(request.get("image") or ""))))

    def command(self, request: Mapping[str, Any], image: Source) -> InferenceCommand:
        """What a request for a model asks. Raises NotKnown, InvalidRequest."""
        self.require_model(str(request.get("model") or ""))
        return InferenceCommand.read(request, image=image, known=self.datastore().label_names(image.image_id))

    def run(self, command: InferenceCommand) -> dict[str, Any]:
        """Run a task. It is a job while it runs. Raises what the task raises, and InvalidRequest where the work was
        stopped."""
        task, source = self.require_model(command.model), command.image
        title, image = f"{command.model} on {source.name}", source.image_id
        job = Job(SEGMENT, title=title, owner=command.client, image=image, model=command.model, brief=True)
        try:
            # clicks go before whatever else computes; what takes long takes its own place where it computes
            turn = self.jobs.turns.brief() if getattr(task, "brief", False) else self.jobs.turns.pausing()
            with self.jobs.running(job), turn:
                path, details = task(replace(command, progress=job.progress))
        except Cancelled:
            if not job.cancelled:  # a batch that all this belongs to
                raise
            raise InvalidRequest("the work was cancelled: run the model again to start it anew") from None
        self.background.prefer(source, client=command.client)
        label = path
        if path and command.keep:
            if not source.image_id:
                raise InvalidRequest("save_label needs an image of the datastore")
            info = {"model": command.model, "params": details}
            label = self.datastore().save_label(source.image_id, path, command.tag, info)
        return {"label": label, "tag": command.tag, "file": path, "params": details}

    def train(self, request: dict[str, Any]) -> Any:
        """As MONAI Label does in a process of this machine; with ``--conf cluster`` in one of a worker's.

        A worker has the same folders under the same paths. How far it is stands beside the task checkpoints.
        """
        if self.configuration.cluster is None:
            return super().train(request)
        own = {key: value for key, value in self.conf.items() if not key.startswith("cluster")}
        same = {
            "encoder": self.configuration.encoder,
            "store": self.configuration.store,
            "heads": self.configuration.heads or default_checkpoints(self.studies),
            "dicom_folder": self.configuration.dicom_folder or default_dicom_folder(),
        }
        conf = json.dumps({**own, **{key: str(value) for key, value in same.items()}})
        program = Program(
            module=WORKER,
            arguments=(
                *("--app", os.path.abspath(self.app_dir), "--studies", self.studies),
                *("--method", "train", "--request", json.dumps(request), "--output", "{out}"),
            ),
            environment={"MONAI_LABEL_APP_CONF": conf},
        )
        with open_engine(cluster=self.configuration.cluster) as engine:
            return json.loads(run_elsewhere(engine, program))

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

    def require_options(self, options: Mapping[str, Any], task: InferTask) -> None:
        """Refuse keys that nobody reads. Raises InvalidRequest."""
        labels = {*self.services[FEWSHOT].offered, BACKGROUND, str(options.get("label"))}
        rest = {name: value for name, value in options.items() if name not in labels}
        require_keys(rest, [*INFERENCE, *task.config(), *CONFIRM], where="params")

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """The next image by ``strategy``; {} when none is left, perhaps with a ``message``. A remote store fetches it.

        Where the strategy names ``slices`` too (with ``axis`` of the client's [i, j, k], 2 unless told, and perhaps
        ``slices_by_label``), they are noted as assigned to the client: what it submits then is truth on them, empty
        or not.
        """
        request = with_known_labels(request, self.datastore().label_names(""))
        found = self.require_strategy(str(request.get("strategy") or ""))(request, self.datastore()) or {}
        if not found.get("id"):
            return {name: text for name, text in found.items() if name == "message"}
        found = {**found, "path": str(self.images.from_datastore(found["id"]).path)}
        if found.get("slices"):  # each label with its own
            axis, client = 2 - int(found.setdefault("axis", 2)), str(request.get("client_id") or "")
            wanted = [([label], slices) for label, slices in (found.get("slices_by_label") or {}).items()]
            found["assignments"] = [
                self.datastore().assign(found["id"], slices, axis=axis, labels=labels, client=client).id
                for labels, slices in wanted or [(found.get("labels") or [], found["slices"])]
            ]
        return found

    def require_model(self, name: str) -> InferTask:
        """The task of this name. Raises NotKnown, as the others do."""
        return _named("model", name, self._infers)

    def require_trainer(self, name: str) -> Training:
        return _named("train task", name, self._trainers)

    def require_service(self, method: str) -> FewShotService:
        """The service of a method that learns from annotated slices."""
        return _named("method", method, self.services)

    def require_strategy(self, name: str) -> Strategy:
        return _named("strategy", name, self._strategies)

    def model_file(self, model: str, validate: bool = True) -> str:
        self.require_model(model)
        raise NotKnown("file for model", model, step="Weights are chosen at start, with --conf encoder and weights")


def _named(kind: str, name: str, known: Mapping[str, _Task]) -> _Task:
    if name not in known:
        raise NotKnown(kind, name, known)
    return known[name]
