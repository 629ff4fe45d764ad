"""MONAI Label's record of a local datastore: always whole, or made again from what lies beside it."""

from __future__ import annotations

import filecmp
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel
from monailabel.interfaces.exception import ImageNotFoundException

from ssmsam.dicom.seg_check import NOTHING_COVERED, Covered
from ssmsam.files import WRITING, put_aside, whole_file, write_bytes
from ssmsam.server.monailabel_patches import held
from ssmsam.server.privacy import keep_names_out_of_logs
from ssmsam.service.annotated_studies import Info
from ssmsam.service.errors import NotNow, StudiesNotWritable, shown
from ssmsam.service.identifiers import LONGEST_NAME

logger = logging.getLogger(__name__)

LOCK = ".lock"
"""MONAI Label's lock of the record."""
ABANDONED_S = 3600
"""After so many seconds nobody is writing an unfinished file any more: its process has ended. A guess."""


class DamagedRecord(ValueError):
    """The record is not what was written. The message says why."""


def read_record(path: Path) -> LocalDatastoreModel:
    """What MONAI Label's record says. Raises :class:`DamagedRecord`, and OSError where it cannot be read."""
    data = path.read_bytes()
    try:
        return LocalDatastoreModel.model_validate_json(data)
    except Exception as error:  # whatever its parser raises for a damaged file
        first = str(error).strip().splitlines()[-2:]
        raise DamagedRecord(" ".join(line.strip() for line in first)[:200] or "it is empty") from None


def why_not_writable(folder: Path) -> str:
    """Why nothing can be written into a folder, in the system's words; "" where it can."""
    try:
        with NamedTemporaryFile(dir=folder, prefix=WRITING) as probe:
            probe.write(bytes(4096))  # a full disk may still take an empty file
            probe.flush()
        with (folder / LOCK).open("ab"):
            pass
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""


class _Unwritable(LocalDatastoreModel):
    """A record whose missing folders of labels are elsewhere: MONAI Label makes them at its start."""

    elsewhere: str = ""

    def label_path(self, tag: Any) -> str:
        path = str(super().label_path(tag))
        return path if os.path.isdir(path) else os.path.join(self.elsewhere, str(tag or "all"))


@held("storing", "add_image", "save_label", "remove_image", "remove_label", "update_image_info", "update_label_info")
class SoundRecord(LocalDatastore):
    """The local datastore with a record that appears whole or not at all.

    A damaged record is put aside under another name and made again from the images and labels in the folder. Where the
    folder cannot be written, the record is in memory only, and what would change a file raises
    :class:`~ssmsam.service.errors.StudiesNotWritable`.
    """

    _config_ts: float

    def __init__(self, folder: str | os.PathLike[str], **settings: Any) -> None:
        self.notices: list[str] = []
        """What the one who runs the server should know of the folder, as sentences without paths."""
        path = Path(folder)
        self._rebuilt = False
        self._why_not = why_not_writable(path) if path.is_dir() else ""
        self._elsewhere: TemporaryDirectory[str] | None = None
        if self._why_not:
            self._elsewhere = TemporaryDirectory(prefix="ssmsam-unwritable-")
            self.notices.append(str(StudiesNotWritable(self._why_not)))
            logger.warning("%s: %s", path, self.notices[-1])
        else:
            remove_unfinished(path)
        LocalDatastore.__init__(self, str(folder), **settings)
        if self._rebuilt and settings.get("read_only"):  # MONAI Label would leave it empty then
            self._reconcile_datastore()

    @property
    def writable(self) -> bool:
        return not self._why_not

    def place_for(self, folder: Path) -> Path:
        """A folder of the datastore, or a copy of it that can be written as long as the server runs."""
        if self._elsewhere is None:
            return folder
        copy = Path(self._elsewhere.name) / folder.name
        if not copy.exists() and folder.is_dir():
            shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("lock"))
        copy.mkdir(exist_ok=True)
        return copy

    def require_writable(self) -> None:
        """Raises StudiesNotWritable."""
        if self._why_not:
            raise StudiesNotWritable(self._why_not)

    @contextmanager
    def storing(self) -> Iterator[None]:
        """What is done inside changes files. Raises StudiesNotWritable."""
        self.require_writable()
        yield

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        name, ext = self._to_id(os.path.basename(image_filename))
        image_id = image_id or name
        name = self._filename(image_id, ext)
        with self._locked():
            target = Path(self._datastore.image_path()) / name
            self._expect_new(image_id, target, Path(image_filename))
            _copy(image_filename, target)
            info = {**(image_info or {}), "ts": int(time.time()), "name": name}
            self._datastore.objects[image_id] = ImageLabelModel(image=DataModel(info=info, ext=ext))
            self._update_datastore_file(lock=False)
        return image_id

    def _expect_new(self, image_id: str, target: Path, file: Path) -> None:
        """An image that is there, and all that was drawn on it, is not replaced by another. The same may come again.

        Raises NotNow.
        """
        known = self._datastore.objects.get(image_id)
        there = target if known is None else target.with_name(self._filename(image_id, known.image.ext))
        if there.exists() and not (there.is_file() and filecmp.cmp(there, file, shallow=False)):
            raise NotNow(
                f"there is another image called {shown(image_id)}: send this one under another name, or remove "
                "that one with its labels first (DELETE /datastore/image)"
            )

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: Info, covered: Covered = NOTHING_COVERED
    ) -> str:
        """Keep a label file. It cannot hold what is ``covered``: that stays with the annotations."""
        if image_id not in self._datastore.objects:
            raise ImageNotFoundException(f"Image {image_id} not found")
        _, ext = self._to_id(os.path.basename(label_filename))
        name = self._filename(image_id, ext)
        with self._locked():
            _copy(label_filename, Path(self._datastore.label_path(label_tag)) / name)
            info = {**(label_info or {}), "ts": int(time.time()), "name": name}
            self._datastore.objects[image_id].labels[label_tag] = DataModel(info=info, ext=ext)
            self._update_datastore_file(lock=False)
        return image_id

    # --- the record's file

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        """Read the record if it changed. A damaged one is put aside; what is known of it in memory stays."""
        path = Path(self._datastore_config_path)
        with self._locked():
            try:
                stamp = path.stat().st_mtime
                if stamp == self._config_ts:
                    return
                record = read_record(path)
            except FileNotFoundError:
                record = None
            except (DamagedRecord, OSError) as error:
                self._replace_damaged(path, error)
                record = None
            if record is not None:
                self._datastore, self._config_ts = record, stamp
                self._datastore.base_path = self._datastore_path
            if self._elsewhere is not None and not isinstance(self._datastore, _Unwritable):
                known = {**dict(self._datastore), "elsewhere": self._elsewhere.name}
                self._datastore = _Unwritable.model_construct(**known)

    def _replace_damaged(self, path: Path, error: DamagedRecord | OSError) -> None:
        self._rebuilt = True
        why = error.strerror if isinstance(error, OSError) else error
        kept = "it stays where it is"
        if self.writable:
            kept = f"it is kept as {put_aside(path)}"
            if self._config_ts:  # what was read before is known still
                self._update_datastore_file(lock=False)
        told = f"the record {path.name} is damaged ({why}): {kept}, and a new one is made from the images and labels"
        logger.warning("%s: %s", path.parent, told)
        self.notices.append(f"{told}; what was noted of labels beside their files is lost")

    def _update_datastore_file(self, lock: bool = True) -> None:
        if not self.writable:
            return
        if lock:
            with self._locked():
                self._write()
        else:
            self._write()

    def _write(self) -> None:
        text = self._datastore.model_dump_json(exclude={"base_path"}, indent=2, fallback=str)
        path = Path(self._datastore_config_path)
        write_bytes(path, text.encode())
        self._config_ts = path.stat().st_mtime

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if not self.writable:
            yield
            return
        with FileLock(self._lock_file):
            yield

    def _list_files(self, path: str, patterns: list[str]) -> dict[str, str]:
        """Those whose names are text: others could not be written into a record that can be read again."""
        return self._named_in_text(path, super()._list_files(path, patterns))

    def _named_in_text(self, path: str, files: Iterable[str]) -> dict[str, str]:
        """Those of the files of a folder whose names are text, and leave room for the suffix of a label beside them;
        a notice for each of the others."""
        found = {}
        for name in files:
            is_text = _is_text(name)
            if is_text and len(self._to_id(name)[0].encode()) <= LONGEST_NAME:
                found[name] = name
                continue
            shown = name.encode(errors="surrogateescape").decode(errors="replace")
            why = f"is longer than {LONGEST_NAME} bytes" if is_text else "is not UTF-8"
            told = f"{shown!r} is left out: its name {why}; rename it"
            if told not in self.notices:
                logger.warning("%s: %s", path, told)
                self.notices.append(told)
        keep_names_out_of_logs(self._to_id(name)[0] for name in found)
        return found


def remove_unfinished(folder: Path) -> None:
    """Remove what killed writers left in a folder of studies: files and folders that never got their name."""
    places = (f"{WRITING}*", f"labels/*/{WRITING}*", f".annotations/{WRITING}*", f".annotations/*/{WRITING}*")
    for left in [found for place in places for found in folder.glob(place)]:
        try:
            if abs(time.time() - left.lstat().st_mtime) > ABANDONED_S:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        except OSError as error:
            logger.info("%s could not be removed: %s", left, error)


def _copy(source: str, target: Path) -> None:
    with whole_file(target, "") as partial:
        shutil.copyfile(source, partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
