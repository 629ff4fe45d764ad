"""Final labels that people put beside their images by hand."""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from ssmsam.annotation.annotations import InvalidSubmission
from ssmsam.service.annotated_studies import FINAL, AnnotatedStudies
from ssmsam.service.set_aside import SetAside
from ssmsam.volume.errors import UnreadableVolume

logger = logging.getLogger(__name__)


class LabelImport:
    """Reads the final labels of images without annotations, one after the other in a thread of its own.

    ``names`` are the labels of the values from 1 where a label's info does not say. ``aside`` holds those that cannot
    be used; each is tried again when its file or its image changes.
    """

    def __init__(self, studies: AnnotatedStudies, names: Sequence[str]) -> None:
        self._studies, self._names = studies, tuple(names)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="label-import")
        self._last: Future[None] | None = None
        self.aside = SetAside(self._state)

    def look(self) -> None:
        """Look for labels that were not read yet."""
        self._last = self._thread.submit(self._read_all)

    def wait(self) -> None:
        """Until all that there were when :meth:`look` was called last are read."""
        if self._last is not None:
            self._last.result()

    def _read_all(self) -> None:
        for image in self._studies.files.list_images():
            if FINAL in self._studies.files.get_labels_by_image_id(image) and not self.aside.reason(image):
                try:
                    self._studies.bring(image, self._names)
                    self.aside.clear(image)
                except (InvalidSubmission, UnreadableVolume) as error:
                    self._put_aside(image, str(error))
                except Exception as error:  # one bad file stops no other
                    logger.exception("The final label of %s cannot be used", image)
                    self._put_aside(image, f"it cannot be used ({type(error).__name__}); the server's log says more")

    def _put_aside(self, image: str, reason: str) -> None:
        told = f"{image}: its label in labels/final is not used: {reason}"
        logger.warning("%s", told)
        self.aside.note(image, told)

    def _state(self, image: str) -> Hashable:
        try:
            files = (self._studies.files.get_label_uri(image, FINAL), self._studies.files.get_image_uri(image))
            return tuple((os.stat(file).st_mtime_ns, os.stat(file).st_size) for file in files)
        except OSError:
            return ()
