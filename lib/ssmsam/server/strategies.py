"""Which image to annotate next."""

from __future__ import annotations

import random
import time
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy


class First(Strategy):
    """The images in the order of their names, one after the other."""

    def __init__(self) -> None:
        super().__init__("The first image, by name, that has no finished label")

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        images = datastore.get_unlabeled_images()
        return {"id": min(images)} if images else None


class Random(Strategy):
    """Chance, with those images more likely that were not offered for long."""

    def __init__(self) -> None:
        super().__init__("A random image without a finished label, rather one that was not offered lately")

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        images = sorted(datastore.get_unlabeled_images())
        if not images:
            return None
        now = time.time()
        # at least one second, so that images which were all offered just now can still be drawn
        waited = [max(1.0, now - self._offered(datastore, image, request)) for image in images]
        return {"id": random.choices(images, weights=waited)[0]}

    @staticmethod
    def _offered(datastore: Datastore, image: str, request: dict[str, Any]) -> float:
        """When this strategy offered the image last, in seconds since 1970."""
        offers = datastore.get_image_info(image).get("strategy")
        last = offers.get(request.get("strategy")) if isinstance(offers, dict) else None
        return float(last.get("ts", 0)) if isinstance(last, dict) else 0.0
