"""The click and box tasks that viewers list: thin fronts on ``ssmsam.prompting``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from ssmsam.annotation.truth import PackedMask, now
from ssmsam.cache import Cache
from ssmsam.encoders.embedder import Embedder
from ssmsam.progress import Progress, silent
from ssmsam.prompting.decoder import PromptDecoder
from ssmsam.prompting.prompt import SlicePrompt
from ssmsam.prompting.request import PromptRequest
from ssmsam.prompting.session import SegmentationResult, segment_2d, segment_3d
from ssmsam.prompting.state import StateStore, same
from ssmsam.server.annotated import AnnotatedStudies
from ssmsam.server.answer import centroids, write_mask
from ssmsam.server.background import Background
from ssmsam.server.errors import InvalidRequest
from ssmsam.server.images import Images, OpenImage

UNNAMED = "object"
"""The label of a mask when the request names none: viewers use the segment that is selected."""

FOR_LABEL = "for_label"
"""An option for viewers that never send which segment is selected."""

AS_SELECTED = "as selected"

PROGRESS = "_progress"
"""What a request's work tells how far it is. No client can send this."""

AS_SENT = "_label_as_sent"
"""How the client spells the label, which its viewer finds its segment by."""


REMEMBERED = 1024
"""Objects whose prompts are remembered with the time of each: a guess, many more than are worked on at once. Prompts of
a forgotten one count as sent anew: the next answer says of their slices what the prompts say."""


def progress_of(request: Mapping[str, Any]) -> Progress:
    """What the work for a request calls; see :data:`PROGRESS`."""
    progress: Progress = request.get(PROGRESS) or silent
    return progress


def label_choices(labels: tuple[str, ...]) -> list[str]:
    """The values that :data:`FOR_LABEL` offers, the first one when nothing was chosen."""
    return [AS_SELECTED, *labels]


def named(options: dict[str, Any]) -> dict[str, Any]:
    """A request's options with ``label`` as chosen in :data:`FOR_LABEL`, where something was.

    Raises InvalidRequest where the selected segment is another: an option may be left from before.
    """
    chosen, selected = chosen_label(options), str(options.get("label") or "")
    if chosen and selected and chosen != selected:
        raise InvalidRequest(
            f"{selected!r} is selected, but the option {FOR_LABEL} says {chosen!r}: set it to {AS_SELECTED!r}, "
            "or select the other label"
        )
    return {**options, "label": chosen} if chosen else options


def chosen_label(options: dict[str, Any]) -> str:
    """What :data:`FOR_LABEL` says; "" when nothing was chosen there."""
    chosen = options.get(FOR_LABEL)
    return chosen if isinstance(chosen, str) and chosen != AS_SELECTED else ""


@dataclass(frozen=True, kw_only=True)
class Prompting:
    """What these tasks work with. What a user did in one of them, the others know."""

    images: Images
    datastore: Datastore
    embedder: Embedder
    decoder: PromptDecoder
    background: Background
    states: StateStore = field(default_factory=StateStore)
    labels: tuple[str, ...] = ()
    """The labels that viewers are offered."""

    asked: Cache[tuple[str, str, str], dict[int, tuple[SlicePrompt, str]]] = field(
        default_factory=lambda: Cache(REMEMBERED)
    )
    """Image, label and client -> slice -> its prompts, and when they were first sent."""

    def since(self, image: OpenImage, prompts: PromptRequest) -> dict[int, str]:
        """When the prompts that a request has on its slices were first sent."""
        known = self.asked.recalled((image.key, prompts.label, prompts.client_id), dict)
        for index, prompt in prompts.slices.items():
            if index not in known or not same(prompt, known[index][0]):
                known[index] = prompt, now()
        return {index: known[index][1] for index in prompts.slices}

    def confirmed(self, image: OpenImage, prompts: PromptRequest, client: str) -> dict[int, PackedMask]:
        """Slices that this client annotated itself, after it had sent the prompts on them that it sends again now.

        Viewers replace all that they show by the answer for a volume, and send all points each time.
        """
        if not isinstance(self.datastore, AnnotatedStudies) or not (image.source.image_id and prompts.label):
            return {}
        since = self.since(image, prompts)
        if prompts.dimension == 2:
            return {}
        known = self.datastore.annotated_by(
            client, image.source.image_id, prompts.label, grid=image.volume.grid, plane=image.embeddings.plane
        )
        return {index: entry.mask for index, entry in known.items() if since.get(index, "") < entry.when}

    def serve(self, image: OpenImage, prompts: PromptRequest, result: SegmentationResult, client: str) -> None:
        """Remember what a client has on screen now, so that its submission can be compared with it."""
        if not isinstance(self.datastore, AnnotatedStudies) or not image.source.image_id:
            return
        flat = prompts.dimension == 2
        if flat and not result.mask.any():
            return  # viewers ignore an empty answer to a click on a slice
        self.datastore.serve(
            image.source.image_id,
            result.mask,
            label=prompts.label,
            client=client,
            plane=image.embeddings.plane,
            only=[prompts.current] if flat and prompts.current is not None else None,
            prompted=result.details["slices_prompted"],
        )


class PromptedTask(InferTask):
    """Clicks and boxes to the mask of one object, on a slice (``dimension`` 2) or through the volume (3)."""

    def __init__(self, prompting: Prompting, *, dimension: int) -> None:
        options: dict[str, Any] = {"reset_state": False, FOR_LABEL: label_choices(prompting.labels)}
        if dimension == 3:
            options |= {"propagate": True, "max_mm": 0.0, "z_range": ""}
        where = "this slice" if dimension == 2 else "the whole volume, in both directions"
        super().__init__(
            type=InferType.DEEPGROW,
            labels=[],  # none of its own: viewers then offer the labels of the app
            dimension=dimension,
            description=f"Click on an organ or draw a box round it: segments {where}",
            config=options,
        )
        self._prompting = prompting

    def is_valid(self) -> bool:
        return True

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """``request`` holds the viewer's parameters and ``image``, a :class:`~ssmsam.server.images.Source`.

        Returns the path of the mask and the details. Raises InvalidPrompt, InvalidRequest, UnreadableVolume.
        """
        started = time.perf_counter()
        options = {**self.config(), **request}
        room = self._prompting
        image = room.images.open(options["image"])
        embeddings = image.embeddings
        prompts = PromptRequest.parse(options, grid=image.volume.grid, plane=embeddings.plane, dimension=self.dimension)
        opened = time.perf_counter()
        client = str(request.get("client_id") or "")
        confirmed = room.confirmed(image, prompts, client)
        gone = {index for index, mask in confirmed.items() if mask.empty}  # a click that only said so is no prompt
        prompts = replace(prompts, slices={k: prompt for k, prompt in prompts.slices.items() if k not in gone})
        state = room.states.open(image.key, prompts.label, prompts.client_id)
        segment = segment_2d if self.dimension == 2 else segment_3d
        result = segment(prompts, embeddings, room.decoder, state, progress=progress_of(request))
        for index, mask in confirmed.items():
            embeddings.plane.stack(result.mask)[index] = mask.array
        segmented = time.perf_counter()
        room.serve(image, prompts, result, client)
        path = write_mask(result.mask, image.volume, options)
        written = time.perf_counter()
        room.background.prefer(image, near=prompts.current, client=client)
        seconds = {
            "pre": opened - started, "infer": segmented - opened, "post": 0.0,
            "write": written - segmented, "total": written - started,
        }  # fmt: skip
        labels = {str(options.get(AS_SENT) or prompts.label or UNNAMED): 1}
        return path, {
            **result.details,
            "label_names": labels,
            "centroids": centroids(result.mask, labels),
            "voxels": int(result.mask.sum()),
            "latencies": {name: round(value, 4) for name, value in seconds.items()},
            **self._circumstances(image),
        }

    def _circumstances(self, image: OpenImage) -> dict[str, Any]:
        """How the answer came about, for records and tests."""
        encoder = self._prompting.embedder.encoder
        return {
            "encoder": encoder.spec.name,
            "encoder_sha256": encoder.weights_sha256,
            "recipe": image.embeddings.recipe.name,
            "encoded_slices": self._prompting.embedder.encoded,
        }
