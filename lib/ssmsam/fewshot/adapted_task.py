"""What answers after adaptation: a decoder, its support, and a card that tells its story."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ssmsam.fewshot.atlas import Atlas
from ssmsam.fewshot.estimate import SupportCheck
from ssmsam.fewshot.support_bank import SupportBank
from ssmsam.fewshot.support_cache import SupportBanks
from ssmsam.fewshot.target_summary import TargetSummary
from ssmsam.fewshot.task_checkpoint import TaskCheckpoint, decoder_digest, delta_of, public
from ssmsam.models.fewshot_decoder import TargetDecoder

LOCAL = ("support", "support_digest", "completed")
"""What a card says on the machine where it was made and nowhere else: it names images."""


@dataclass(frozen=True, eq=False)
class AdaptedTask:
    """A decoder that was adapted to labelled slices. Made by :func:`~ssmsam.fewshot.pipeline.adapt`.

    Attributes:
        decoder: Answers for all labels.
        banks: The labelled slices by label.
        card: Plain JSON: labels, support, settings, estimates.
        initial: The decoder before adaptation, which no file holds. It answers past the outermost annotated slices:
            what was learned between them makes a mask run on into a neighbour there. None where it would know nothing.
        roi_banks: The labelled slices of small targets in enlarged windows, by label.
        atlases: The labelled volumes with pseudo-labels; they say where the labels are in other volumes.
        summarised: The labelled slices are not on this machine, and the banks stand for them.
    """

    decoder: TargetDecoder
    banks: Mapping[str, SupportBank]
    card: Mapping[str, Any]
    initial: TargetDecoder | None = None
    roi_banks: Mapping[str, SupportBank] = field(default_factory=dict)
    atlases: tuple[Atlas, ...] = ()
    summarised: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.banks)

    @property
    def learned_from(self) -> dict[str, int]:
        """Label -> how many slices were labelled."""
        return dict(self.card.get("learned_from", {}))

    @property
    def pseudo_labelled(self) -> tuple[str, ...]:
        """The labels whose labelled volumes got pseudo-labels; so did those of cards that do not say it."""
        return tuple(self.card.get("completed", self.labels))

    def lacks(self, volume: str) -> tuple[str, ...]:
        """The labels that need pseudo-labels before they are looked for in a volume: it has no slice of them."""
        return tuple(
            label
            for label, bank in self.banks.items()
            if label not in self.pseudo_labelled and not bank.annotated(volume)
        )

    def support_check(self, label: str) -> SupportCheck:
        """How the decoder does on the labelled slices of a label; cards that do not say it know nothing."""
        return SupportCheck(**self.card.get("support_check", {}).get(label, {}))

    def without(self, left_out: Mapping[str, Collection[int]]) -> AdaptedTask:
        """The same with some slices less: label -> numbers in its bank. It refines nothing in enlarged windows."""
        banks = {label: bank.without(left_out.get(label, ())) for label, bank in self.banks.items()}
        return replace(self, banks=banks, roi_banks={})

    def adapted_from(self, decoder: TargetDecoder) -> AdaptedTask:
        """The same, with ``initial`` where there is one: the decoder that it was adapted from."""
        return replace(self, initial=decoder if self.card.get("adapted") and decoder.pretrained else None)

    @property
    def support(self) -> SupportBanks:
        """Its support, which stays on this machine."""
        return SupportBanks(self.banks, self.roi_banks, self.atlases)

    def with_support(self, support: SupportBanks, local: Mapping[str, Any]) -> AdaptedTask:
        """The same with the labelled slices themselves, and what the card says of them on this machine only."""
        card = {**self.card, **{name: local[name] for name in LOCAL if name in local}}
        return replace(self, **vars(support), card=card, summarised=False)

    def checkpoint(self, base: TargetDecoder) -> TaskCheckpoint:
        """What may leave the machine. ``base`` is the decoder as it came with the encoder's weights."""
        card = {**public(self.card), "labels": list(self.labels), "decoder_sha256": decoder_digest(base)}
        targets = {label: TargetSummary.of(bank) for label, bank in self.banks.items()}
        return TaskCheckpoint(card, delta_of(self.decoder, base), targets)

    @classmethod
    def of(cls, checkpoint: TaskCheckpoint, base: TargetDecoder, name: str) -> AdaptedTask:
        """That of a task checkpoint alone, without the labelled slices. Raises UnusableCheckpoint."""
        decoder = checkpoint.adapted(base, name)
        side = base.logits_side
        banks = {label: target.bank(side) for label, target in checkpoint.targets.items()}
        return cls(decoder, banks, checkpoint.card, summarised=bool(banks)).adapted_from(base)
