"""What the tasks of clicks and boxes share, and what they know of each client's prompts."""

from __future__ import annotations

from dataclasses import dataclass, field

from ssmsam.annotation.annotations import now
from ssmsam.cache import Cache
from ssmsam.embeddings.embedder import Embedder
from ssmsam.interactive.request import PromptRequest
from ssmsam.interactive.session import SegmentationResult, StateStore, same
from ssmsam.models.prompt_decoder import PromptDecoder, SlicePrompt
from ssmsam.ops import PackedMask
from ssmsam.service.annotated_studies import AnnotatedStudies
from ssmsam.service.background import Background
from ssmsam.service.images import Images, OpenImage

REMEMBERED = 1024
"""Objects whose prompts are remembered with the time of each: a guess, many more than are worked on at once. Prompts of
a forgotten one count as sent anew: the next answer says of their slices what the prompts say."""


@dataclass(frozen=True, kw_only=True)
class PromptService:
    """What these tasks work with. What a user did in one of them, the others know."""

    images: Images
    studies: AnnotatedStudies
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
        if not (image.source.image_id and prompts.label):
            return {}
        since = self.since(image, prompts)
        if prompts.dimension == 2:
            return {}
        known = self.studies.annotated_by(
            client, image.source.image_id, prompts.label, grid=image.volume.grid, plane=image.embeddings.plane
        )
        return {index: entry.mask for index, entry in known.items() if since.get(index, "") < entry.when}

    def serve(self, image: OpenImage, prompts: PromptRequest, result: SegmentationResult, client: str) -> None:
        """Remember what a client has on screen now, so that its submission can be compared with it."""
        if not image.source.image_id:
            return
        flat = prompts.dimension == 2
        if flat and not result.slices:
            return  # viewers ignore an empty answer to a click on a slice
        self.studies.serve(
            image.source.image_id,
            result.slices if flat else result.mask,
            label=prompts.label,
            client=client,
            plane=image.embeddings.plane,
            prompted=result.details["slices_prompted"],
        )
