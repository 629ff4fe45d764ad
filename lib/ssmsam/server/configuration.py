"""What ``--conf KEY VALUE`` says, checked once at start."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError

from ssmsam.dicom.series import NOT_IMAGES
from ssmsam.models.registry import AUTO, ENCODER_VARIABLE, default_encoder
from ssmsam.paths import default_store
from ssmsam.service.errors import ConfigurationError

DEFAULT_LABELS = (
    "liver", "spleen", "right kidney", "left kidney", "gallbladder", "pancreas", "stomach", "aorta",
    "inferior vena cava", "urinary bladder", "heart", "left lung", "right lung", "lesion", "tumor", "other",
)  # fmt: skip

RESERVED_LABELS = frozenset(
    {"background", "foreground", "label", "model", "image", "device", "slice", "roi", "reset_state", "client_id"}
)
"""Names that mean something else in a viewer's request, where labels and settings share one namespace."""

UNUSED_KEYS = frozenset(
    {"preload", "skip_trainers", "skip_strategies", "skip_scoring", "scribbles", "sam2", "bundles", "server_mode"}
)
"""Keys of MONAI Label and its sample apps that have no effect here. They are accepted so that commands carry over."""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _split(value: Any) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    found = tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
    if not found:
        raise ValueError("expected names separated by commas")
    return found


def _place(value: Any) -> Path:
    return Path(value).expanduser().absolute()


def _folder(value: Any) -> Path:
    if not (folder := _place(value)).is_dir():
        raise ValueError("no such folder")
    return folder


def _shaped(pattern: str, expected: str) -> BeforeValidator:
    """Values whose text is as the pattern says; others are told what was ``expected``."""

    def checked(value: Any) -> Any:
        if not re.fullmatch(pattern, str(value)):
            raise ValueError(expected)
        return value

    return BeforeValidator(checked)


def _labels(value: Any) -> tuple[str, ...]:
    labels = _split(value)
    if refused := [name for name in labels if name.lower() in RESERVED_LABELS or "scribbles" in name.lower()]:
        raise ValueError(f"{_listed(refused)} cannot be a label: viewers give that name another meaning")
    if len(labels) > 255:
        raise ValueError("at most 255 labels fit into a label map")
    return labels


def _modalities(value: Any) -> tuple[str, ...]:
    codes = tuple(code.upper() for code in _split(value))
    if wrong := [code for code in codes if not code.isalnum() or code in NOT_IMAGES]:
        raise ValueError(f"{_listed(wrong)}: expected DICOM modalities of images, such as CT,MR,PT")
    return codes


Place = Annotated[Path, BeforeValidator(_place)]
Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_EXPECTED = {
    **dict.fromkeys(("bool_parsing", "bool_type"), "valid values are true and false"),
    **dict.fromkeys(("float_parsing", "finite_number", "greater_than"), "expected a number above 0"),
    "int_parsing": "expected a whole number above 0",
}
"""What to write instead, for errors that pydantic finds by itself."""


class Configuration(BaseModel):
    """The settings of one server."""

    model_config = ConfigDict(frozen=True)

    models: Names
    """Which infer tasks to offer, by name."""
    encoder: str = Field(default_factory=default_encoder)
    """The backbone, by its name in ``ssmsam.encoders``; ``auto`` is the best one whose weights are here."""
    weights: Annotated[Path, BeforeValidator(_folder)] | None = None
    """A folder with checkpoints; ``None`` looks where ``ssmsam.models.weights`` looks by itself."""
    download: bool = False
    """Whether missing weights may be fetched from the network."""
    store: Place = Field(default_factory=default_store)
    """The folder of the embedding store."""
    store_gb: Positive = 20.0
    """The store's size limit in gigabytes; least recently used embeddings go first."""
    memory_gb: Positive = 2.0
    """How much memory opened volumes may take; as much again is allowed for their embeddings."""
    device: Annotated[str, _shaped(r"auto|cpu|cuda(:\d+)?", "valid values are auto, cpu, cuda and cuda:N")] = "auto"
    """``auto`` (a GPU when there is one), ``cpu``, ``cuda`` or ``cuda:N``."""
    threads: Annotated[
        int,
        BeforeValidator(lambda text: 0 if text == "auto" else text),
        _shaped(r"auto|0*[1-9]\d*", "expected auto or a whole number above 0"),
    ] = 0
    """CPU threads per computation; 0 means one per physical core, or ``OMP_NUM_THREADS`` where that is set."""
    bfloat16: Annotated[bool | None, BeforeValidator(lambda text: None if text == "auto" else text)] = None
    """Whether embeddings are computed in half the precision; ``None`` where the encoder's masks stay the same and the
    processor is faster at it."""
    precompute: bool = True
    """Whether an image's slices are embedded in the background as soon as somebody opens it."""
    precompute_minutes: Positive = 10.0
    """For how long after the last request about an image that goes on: a guess."""
    heads: Place | None = None
    """The folder of adapted heads; ``None`` means one of its own for each studies folder or store."""
    modalities: Annotated[tuple[str, ...], BeforeValidator(_modalities)] = ("CT", "MR")
    """Which series of a DICOMweb store are images."""
    dicom_folder: Place | None = None
    """Where labels and downloaded series of DICOMweb stores are kept, each store in a folder of its own; ``None``
    means the user's data folder."""
    dicom_gb: Positive = 20.0
    """The limit for downloaded series in gigabytes; the least recently used go first."""
    cluster: (
        Annotated[
            str,
            _shaped("(tcp|tls)://.*", "expected the address of a Dask scheduler, tcp://HOST:PORT or tls://HOST:PORT"),
        ]
        | None
    ) = None
    """A Dask scheduler for work on many images (tcp://host:8786); ``None`` starts processes on this machine."""
    cluster_workers: PositiveInt = 1
    """How many of them; each loads the model."""
    labels: Annotated[tuple[str, ...], BeforeValidator(_labels)] = DEFAULT_LABELS
    """The labels that viewers offer, in their order."""

    @classmethod
    def parse(cls, conf: Mapping[str, str], *, models: Sequence[str], encoders: Sequence[str]) -> Configuration:
        """The settings in ``conf``, each value a string as the command line gives it.

        ``models`` and ``encoders`` are the names that exist. Raises :class:`ConfigurationError`.
        """
        if unknown := sorted(set(conf) - set(cls.model_fields) - UNUSED_KEYS):
            valid = _listed(sorted(cls.model_fields))
            raise ConfigurationError(f"unknown --conf key {_listed(unknown)}; valid keys are {valid}")
        said = {"models": "all", **{key: str(value).strip() for key, value in conf.items() if key not in UNUSED_KEYS}}
        try:
            found = cls.model_validate(said)
        except ValidationError as error:
            wrong = error.errors()[0]
            why = _EXPECTED.get(wrong["type"]) or wrong["msg"].removeprefix("Value error, ")
            raise ConfigurationError(f"--conf {wrong['loc'][0]} {wrong['input']}: {why}") from error
        if found.models == ("all",):
            found = found.model_copy(update={"models": tuple(models)})
        encoder = "--conf encoder " if "encoder" in conf else f"{ENCODER_VARIABLE}="
        for key, names, known in (
            ("--conf models ", found.models, ("all", *models)),
            (encoder, (found.encoder,), (*encoders, AUTO)),
        ):
            if unknown := [name for name in names if name not in known]:
                raise ConfigurationError(f"{key}{_listed(unknown)}: unknown; valid names are {_listed(known)}")
        return found
