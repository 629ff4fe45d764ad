"""What ``--conf KEY VALUE`` says, checked once at start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """The settings of one server."""

    models: tuple[str, ...]
    """Which infer tasks to offer, by name."""
    encoder: str = field(default_factory=default_encoder)
    """The backbone, by its name in ``ssmsam.encoders``; ``auto`` is the best one whose weights are here."""
    weights: Path | None = None
    """A folder with checkpoints; ``None`` looks where ``ssmsam.models.weights`` looks by itself."""
    download: bool = False
    """Whether missing weights may be fetched from the network."""
    store: Path
    """The folder of the embedding store."""
    store_gb: float = 20.0
    """The store's size limit in gigabytes; least recently used embeddings go first."""
    memory_gb: float = 2.0
    """How much memory opened volumes may take; as much again is allowed for their embeddings."""
    device: str = "auto"
    """``auto`` (a GPU when there is one), ``cpu``, ``cuda`` or ``cuda:N``."""
    threads: int = 0
    """CPU threads per computation; 0 means one per physical core, or ``OMP_NUM_THREADS`` where that is set."""
    bfloat16: bool | None = None
    """Whether embeddings are computed in half the precision; ``None`` where the encoder's masks stay the same and the
    processor is faster at it."""
    precompute: bool = True
    """Whether an image's slices are embedded in the background as soon as somebody opens it."""
    precompute_minutes: float = 10.0
    """For how long after the last request about an image that goes on: a guess."""
    heads: Path | None = None
    """The folder of adapted heads; ``None`` means one of its own for each studies folder or store."""
    modalities: tuple[str, ...] = ("CT", "MR")
    """Which series of a DICOMweb store are images."""
    dicom_folder: Path | None = None
    """Where labels and downloaded series of DICOMweb stores are kept, each store in a folder of its own; ``None``
    means the user's data folder."""
    dicom_gb: float = 20.0
    """The limit for downloaded series in gigabytes; the least recently used go first."""
    cluster: str | None = None
    """A Dask scheduler for work on many images (tcp://host:8786); ``None`` starts processes on this machine."""
    cluster_workers: int = 1
    """How many of them; each loads the model."""
    labels: tuple[str, ...] = DEFAULT_LABELS
    """The labels that viewers offer, in their order."""

    @classmethod
    def parse(cls, conf: Mapping[str, str], *, models: Sequence[str], encoders: Sequence[str]) -> Configuration:
        """The settings in ``conf``, each value a string as the command line gives it.

        ``models`` and ``encoders`` are the names that exist. Raises :class:`ConfigurationError`.
        """
        readers = _readers(models, encoders)
        unknown = sorted(set(conf) - set(readers) - UNUSED_KEYS)
        if unknown:
            raise ConfigurationError(
                f"unknown --conf key {_listed(unknown)}; valid keys are {_listed(sorted(readers))}"
            )
        values: dict[str, Any] = {"models": tuple(models), "store": default_store()}
        if "encoder" not in conf and default_encoder() not in (*encoders, AUTO):
            raise ConfigurationError(
                f"{ENCODER_VARIABLE}={default_encoder()}: valid names are {_listed((*encoders, AUTO))}"
            )
        for key, read in readers.items():
            if key in conf:
                try:
                    values[key] = read(str(conf[key]).strip())
                except ValueError as error:
                    raise ConfigurationError(f"--conf {key} {conf[key]}: {error}") from error
        return cls(**values)


def _readers(models: Sequence[str], encoders: Sequence[str]) -> dict[str, Callable[[str], Any]]:
    """How each key's value is read. A reader raises ValueError with a message that says what would be valid."""
    return {
        "models": lambda text: _names(text, models),
        "encoder": lambda text: _one_of(text, (*encoders, AUTO)),
        "weights": _folder,
        "download": _yes_or_no,
        "store": lambda text: Path(text).expanduser().absolute(),
        "store_gb": _positive,
        "heads": lambda text: Path(text).expanduser().absolute(),
        "memory_gb": _positive,
        "device": _device,
        "threads": _threads,
        "bfloat16": lambda text: None if text == "auto" else _yes_or_no(text),
        "precompute": _yes_or_no,
        "precompute_minutes": _positive,
        "modalities": _modalities,
        "dicom_folder": lambda text: Path(text).expanduser().absolute(),
        "dicom_gb": _positive,
        "cluster": _scheduler,
        "cluster_workers": _count,
        "labels": _labels,
    }


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def _split(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise ValueError("expected names separated by commas")
    return names


def _names(text: str, valid: Sequence[str]) -> tuple[str, ...]:
    names = _split(text)
    if names == ("all",):
        return tuple(valid)
    unknown = [name for name in names if name not in valid]
    if unknown:
        raise ValueError(f"unknown {_listed(unknown)}; valid names are all, {_listed(valid)}")
    return names


def _one_of(text: str, valid: Sequence[str]) -> str:
    if text not in valid:
        raise ValueError(f"valid names are {_listed(valid)}")
    return text


def _folder(text: str) -> Path:
    folder = Path(text).expanduser().absolute()
    if not folder.is_dir():
        raise ValueError("no such folder")
    return folder


def _yes_or_no(text: str) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if text.lower() not in words:
        raise ValueError("valid values are true and false")
    return words[text.lower()]


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ValueError("expected a number above 0")
    return number


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("expected a whole number above 0")
    return int(text)


def _scheduler(text: str) -> str:
    if not text.startswith(("tcp://", "tls://")):
        raise ValueError("expected the address of a Dask scheduler, tcp://HOST:PORT or tls://HOST:PORT")
    return text


def _threads(text: str) -> int:
    if text == "auto":
        return 0
    try:
        return _count(text)
    except ValueError:
        raise ValueError("expected auto or a whole number above 0") from None


def _device(text: str) -> str:
    if text not in ("auto", "cpu", "cuda") and not (text.startswith("cuda:") and text[5:].isdecimal()):
        raise ValueError("valid values are auto, cpu, cuda and cuda:N")
    return text


def _labels(text: str) -> tuple[str, ...]:
    labels = _split(text)
    refused = [name for name in labels if name.lower() in RESERVED_LABELS or "scribbles" in name.lower()]
    if refused:
        raise ValueError(f"{_listed(refused)} cannot be a label: viewers give that name another meaning")
    if len(labels) > 255:
        raise ValueError("at most 255 labels fit into a label map")
    return labels


def _modalities(text: str) -> tuple[str, ...]:
    codes = tuple(code.upper() for code in _split(text))
    if wrong := [code for code in codes if not code.isalnum() or code in NOT_IMAGES]:
        raise ValueError(f"{_listed(wrong)}: expected DICOM modalities of images, such as CT,MR,PT")
    return codes
