"""A real, small prompted segmenter without weights: region growing on the pixels.

It answers to all prompts and can be predicted by hand, so tests can say what must come out.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from ssmsam.models.encoder import Embedding, Encoder, EncoderSpec
from ssmsam.models.frame import Frame
from ssmsam.models.prompt_decoder import Candidates, Neighbour, SlicePrompt

SIZE = 64
TOLERANCES = (0.12, 0.3)
QUALITIES = (0.9, 0.7)


class PixelEncoder(Encoder):
    """The embedding is the image."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = EncoderSpec(name="pixels", input_size=SIZE, stride=1, channels=3)
        self.weights_sha256 = "0" * 64

    def encode(self, slices: torch.Tensor) -> Embedding:
        return {"image": slices.clone(), "levels": []}


class RegionDecoder:
    """Connected pixels of about the prompted intensity; two candidates, a strict and a lenient one."""

    logits_size = SIZE
    least_likeness = 0.0

    def __init__(self) -> None:
        self.calls = 0
        self.fed_back = 0
        self.distances: set[float] = set()

    def predict(
        self,
        embedding: Embedding,
        *,
        frame: Frame,
        prompt: SlicePrompt | None = None,
        previous: torch.Tensor | None = None,
        neighbour: Neighbour | None = None,
    ) -> Candidates:
        prompt = prompt or SlicePrompt()
        if prompt.empty and previous is None and neighbour is None:
            raise ValueError("nothing says where the target is")
        self.calls += 1
        self.fed_back += previous is not None
        image = embedding["image"][0, 0].float().cpu().numpy()
        seeds, reference, presence = np.zeros(image.shape, bool), [], 1.0
        start = np.zeros(image.shape, bool)
        for x, y in frame.points_to_input(prompt.positive):
            seeds[_clip(y), _clip(x)] = True
            reference.append(image[_clip(y), _clip(x)])
        if prompt.box is not None:
            x, y = frame.points_to_input(np.reshape(prompt.box, (2, 2))).mean(axis=0)
            seeds[_clip(y), _clip(x)] = True
            reference.append(image[_clip(y), _clip(x)])
        if previous is not None:
            start = previous[0, 0].numpy() > 0
        if neighbour is not None:
            self.distances.add(round(neighbour.distance_mm, 4))
            there = neighbour.mask[0, 0].numpy() > 0.5
            level = float(neighbour.embedding["image"][0, 0].numpy()[there].mean())
            reference.append(level)
            similar = there & (np.abs(image - level) < TOLERANCES[0])
            presence = min(1.0, 2 * similar.sum() / max(1, there.sum()))
            seeds |= similar
        masks = [self._grow(image, seeds, reference, start, prompt, frame, tolerance) for tolerance in TOLERANCES]
        return Candidates(torch.from_numpy(np.stack(masks)), torch.tensor(QUALITIES), float(presence))

    def _grow(self, image, seeds, reference, start, prompt, frame, tolerance) -> np.ndarray:
        difference = np.full(image.shape, np.inf)
        for level in reference:
            difference = np.minimum(difference, np.abs(image - level))
        allowed = difference < tolerance
        for x, y in frame.points_to_input(prompt.negative):
            yx = np.indices(image.shape)
            apart = np.hypot(yx[0] - y, yx[1] - x) > 3
            allowed &= apart
            start = start & apart
        labels, _ = ndimage.label(allowed)
        region = np.isin(labels, np.unique(labels[seeds & allowed])) & allowed
        logits = np.where(region, 1 + 4 * (1 - np.minimum(difference, 1)), -4.0)
        return np.where(start & (logits < 0), 2.0, logits).astype(np.float32)


def _clip(value: float) -> int:
    return int(np.clip(np.rint(value), 0, SIZE - 1))
