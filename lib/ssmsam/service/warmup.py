"""One small inference at start, so that the first user does not wait for lazy imports."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from ssmsam.embeddings.embedder import Embedder
from ssmsam.interactive.request import PromptRequest
from ssmsam.interactive.session import SegmentationState, segment_2d, segment_3d
from ssmsam.models.encoder import Encoder
from ssmsam.models.prompt_decoder import PromptDecoder
from ssmsam.reading import read_volume
from ssmsam.service.mask_files import MaskFormat, write_mask
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume

logger = logging.getLogger(__name__)


class WarmUp(threading.Thread):
    """Runs once. ``done`` tells whether it is over, for better or worse."""

    def __init__(self, *, encoder: Encoder, decoder: PromptDecoder) -> None:
        super().__init__(name="warm-up", daemon=True)
        self._encoder, self._decoder = encoder, decoder

    @property
    def done(self) -> bool:
        return self.ident is not None and not self.is_alive()

    def run(self) -> None:
        started = time.perf_counter()
        try:
            warm_up(self._encoder, self._decoder)
            logger.info("Warm after %.1f s", time.perf_counter() - started)
        except Exception:  # the server works without it; a real fault shows again in the first request
            logger.exception("The warm-up failed")


def warm_up(encoder: Encoder, decoder: PromptDecoder) -> None:
    """Read, embed, segment and write a tiny volume, as requests do. Leaves nothing behind."""
    with tempfile.TemporaryDirectory(prefix="ssmsam-warm-up-") as folder:
        file = Path(folder) / "ball.nii.gz"
        write_volume(_ball(), file)
        volume = read_volume(file)
        embeddings = Embedder(encoder=encoder).open(volume)  # its own: not counted, not stored
        middle = [n // 2 for n in volume.shape[::-1]]
        for dimension, segment in ((2, segment_2d), (3, segment_3d)):
            request = PromptRequest.of(positive=[middle], grid=volume.grid, dimension=dimension)
            result = segment(request, embeddings, decoder, SegmentationState())
            for suffix in (".nrrd", ".nii.gz"):
                Path(write_mask(result.mask, volume, MaskFormat(suffix=suffix))).unlink()


def _ball() -> Volume:
    """A bright ball on dark ground, (3, 64, 64)."""
    z, y, x = np.indices((3, 64, 64)) - np.array([1, 32, 32]).reshape(3, 1, 1, 1)
    ball = (np.hypot(x, y) < 16) & (abs(z) < 2)
    return Volume(array=(ball * 200).astype(np.int16), affine=np.diag([1.0, 1.0, 2.0, 1.0]), modality="MR")
