"""Which studies a cohort has, from a folder, a list, or a DICOMweb store; and their files, wherever work is done."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from ssmsam.dicom.file import looks_like_dicom
from ssmsam.dicom.web import DicomStore, SeriesRecord, StoreAccess
from ssmsam.service.identifiers import VOLUME_SUFFIXES

LISTS = (".txt", ".csv")
MODALITIES = ("CT", "MR")
"""Which series of a store are meant unless others are named."""


@dataclass(frozen=True)
class Study:
    """One image to work on: a path or a series, never its voxels.

    Attributes:
        name: of its own in the cohort, and good as a file name.
        source: the file or folder, or the address of the DICOMweb store that has ``series``.
        series: its record in the store; None for files.
        version: changes when the files do, as far as that is known without reading them.
    """

    name: str
    source: str
    version: str
    series: SeriesRecord | None = None

    @property
    def title(self) -> str:
        """How people know it: the file's own name."""
        return self.name if self.series else Path(self.source).name


def studies_of(source: str | os.PathLike[str], *, modalities: Sequence[str] = MODALITIES) -> list[Study]:
    """The studies of a folder, a list or a DICOMweb store, in a fixed order.

    Args:
        source: a folder as the server's (files, or folders of DICOM); a .txt or .csv file with a path or the address
            of a store per line, relative to the list's folder, `#` before remarks; or http(s)://STORE, which may go on
            as DICOMweb has it: /studies/UID/series/UID.
        modalities: which series of a store are meant.

    Raises:
        ValueError: there is no study, or a line of the list names nothing.
        StoreUnavailable, StoreRefused: the store does not answer.
    """
    found = list(_found(source, modalities))
    if not found:
        what = (
            f"a {' or '.join(modalities)} series"
            if is_address(source)
            else f"{', '.join(VOLUME_SUFFIXES)} or DICOM folders"
        )
        raise ValueError(f"{source} holds no volume: expected {what}")
    often = Counter(study.name for study in found)
    # the same name in several folders, or as several kinds of files
    ends = {study.source: f"-{hashlib.sha256(study.source.encode()).hexdigest()[:8]}" for study in found}
    return [replace(one, name=one.name + ends[one.source]) if often[one.name] > 1 else one for one in found]


def studies_at(paths: Mapping[str, str]) -> list[Study]:
    """Files and folders under names that are given."""
    return [replace(_of_file(Path(path)), name=name) for name, path in paths.items()]


@contextmanager
def files_of(study: Study) -> Iterator[Path]:
    """The file or folder of a study; that of a series is downloaded for as long as it is needed.

    Raises FileNotFoundError where a worker does not see the path, and what :class:`DicomStore` raises.
    """
    if study.series is None:
        if not os.path.exists(study.source):
            raise FileNotFoundError(
                f"{study.source} cannot be seen from here: a cohort's folder has to be mounted at the same path on "
                "every worker"
            )
        yield Path(study.source)
        return
    with tempfile.TemporaryDirectory(prefix="ssmsam-series-") as folder:
        archive(study.source).fetch(study.series, Path(folder))
        yield Path(folder)


def is_address(source: str | os.PathLike[str]) -> bool:
    """Whether it is the address of a DICOMweb store."""
    return str(source).startswith(("http://", "https://"))


@lru_cache(maxsize=4)
def archive(url: str) -> DicomStore:
    """The store at an address. How to get in, prefixes and patience come from the environment that the server reads
    too: what is sent to workers holds no secret."""
    token = os.environ.get("SSMSAM_DICOMWEB_TOKEN", "").strip()
    qido, wado, stow = (os.environ.get(f"MONAI_LABEL_{name}_PREFIX") or None for name in ("QIDO", "WADO", "STOW"))
    return DicomStore(
        StoreAccess(
            url=url.rstrip("/"),
            user=os.environ.get("MONAI_LABEL_DICOMWEB_USERNAME", ""),
            password=os.environ.get("MONAI_LABEL_DICOMWEB_PASSWORD", ""),
            token=(lambda: token) if token else None,
            read_s=float(os.environ.get("MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT") or StoreAccess.read_s),
            qido=qido,
            wado=wado,
            stow=stow,
        )
    )


def volumes_in(folder: Path) -> list[Path]:
    """The volumes that a server on this folder would offer: files, and sub-folders of DICOM files."""
    for place in (folder, folder / "images"):
        if place.is_dir():
            found = sorted(path for path in place.iterdir() if _is_volume(path))
            if found:
                return found
    return []


def _found(source: str | os.PathLike[str], modalities: Sequence[str]) -> Iterable[Study]:
    if is_address(source):
        url, _, within = str(source).partition("/studies/")
        study, _, series = within.strip("/").partition("/series/")
        uids = {"StudyInstanceUID": study, "SeriesInstanceUID": series}
        named = {name: uid for name, uid in uids.items() if uid}
        found = archive(url).series({"Modality": list(modalities), **named})
        records = [one for one in found if study in ("", one.study_uid) and series in ("", one.series_uid)]
        records = sorted(records, key=lambda record: record.series_uid)
        return [Study(one.series_uid, url, f"{one.instances} instances", one) for one in records]
    path = Path(source).expanduser().absolute()
    if path.is_dir():
        return map(_of_file, volumes_in(path))
    if path.is_file() and path.name.lower().endswith(LISTS):
        return _listed(path, modalities)
    if path.exists():
        return [_of_file(path)]
    raise ValueError(f"{source}: there is no such folder, list or file")


def _listed(path: Path, modalities: Sequence[str]) -> Iterator[Study]:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        entry = line.partition("#")[0].strip().strip('"')
        if entry:
            try:
                yield from _found(entry if is_address(entry) else path.parent / entry, modalities)
            except ValueError as error:
                raise ValueError(f"line {number} of {path.name}: {error}") from None


def _of_file(path: Path) -> Study:
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    stats = [(one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in files]
    name = path.name
    for ending in VOLUME_SUFFIXES:
        name = name.removesuffix(ending)
    return Study(name, str(path), hashlib.sha256(repr(stats).encode()).hexdigest())


def _is_volume(path: Path) -> bool:
    if path.name.startswith(".") or path.name == "labels":  # what a server keeps there are no images
        return False
    if not path.is_dir():
        return path.name.lower().endswith(VOLUME_SUFFIXES)
    return any(looks_like_dicom(one) for one in path.rglob("*") if one.is_file() and not one.name.startswith("."))
