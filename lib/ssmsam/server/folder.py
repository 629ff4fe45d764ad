"""MONAI Label's local datastore for a server with threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

from monailabel.datastore.local import LocalDatastore

from ssmsam.server.local_record import SoundRecord


def _synchronised(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(self: SynchronisedFolder, *args: Any, **kwargs: Any) -> Any:
        with self._changing:
            return method(self, *args, **kwargs)

    return call


class SynchronisedFolder(SoundRecord):
    """The local datastore, with its record read and changed by one thread at a time.

    The watcher of the folder empties the record for a moment while it looks again, and may exchange it for what
    another process wrote. A request that comes in between would find no image, or lose the label that it saves.
    """

    def __init__(self, folder: str | os.PathLike[str], **settings: Any) -> None:
        self._changing = threading.RLock()
        super().__init__(folder, **settings)
        if hasattr(self, "_handler"):  # files that appear in one step come by another name
            self._handler.on_moved = self._on_moved

    def remove_label(self, label_id: str, label_tag: str) -> None:
        with self._changing:
            super().remove_label(label_id, label_tag)
            known = self._datastore.objects.get(label_id)
            if known is not None and known.labels.pop(label_tag, None) is not None:  # the watcher would come later
                self._update_datastore_file()

    def _on_moved(self, event: Any) -> None:
        if event.dest_path == self._datastore_config_path:
            self._init_from_datastore_file()
        else:
            self.refresh()

    list_images = _synchronised(LocalDatastore.list_images)
    get_labeled_images = _synchronised(LocalDatastore.get_labeled_images)
    get_image_uri = _synchronised(LocalDatastore.get_image_uri)
    get_image_info = _synchronised(LocalDatastore.get_image_info)
    get_label_uri = _synchronised(LocalDatastore.get_label_uri)
    get_label_info = _synchronised(LocalDatastore.get_label_info)
    get_labels_by_image_id = _synchronised(LocalDatastore.get_labels_by_image_id)
    save_label = _synchronised(SoundRecord.save_label)
    add_image = _synchronised(SoundRecord.add_image)
    update_image_info = _synchronised(SoundRecord.update_image_info)
    update_label_info = _synchronised(SoundRecord.update_label_info)
    datalist = _synchronised(LocalDatastore.datalist)
    status = _synchronised(LocalDatastore.status)
    json = _synchronised(LocalDatastore.json)
    _reconcile_datastore = _synchronised(LocalDatastore._reconcile_datastore)
    _init_from_datastore_file = _synchronised(SoundRecord._init_from_datastore_file)
