"""3D Slicer: its table of options, its spelling of labels, and what it shows of a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ssmsam.annotation.labels import known_label
from ssmsam.server.clients.prompts import PROMPT_KEYS
from ssmsam.service.errors import InvalidRequest

FOR_LABEL = "for_label"
"""An option for viewers that do not send which segment is selected."""
AS_SELECTED = "as selected"
ALL_ANNOTATED = "all annotated"


def label_choices(labels: Sequence[str]) -> list[str]:
    """The values that :data:`FOR_LABEL` offers, the first one when nothing was chosen."""
    return [AS_SELECTED, *labels]


def chosen_label(options: Mapping[str, Any]) -> str:
    """What :data:`FOR_LABEL` says; "" when nothing was chosen there."""
    chosen = options.get(FOR_LABEL)
    return chosen if isinstance(chosen, str) and chosen != AS_SELECTED else ""


def with_chosen_label(options: Mapping[str, Any]) -> dict[str, Any]:
    """A request's options with ``label`` as chosen in :data:`FOR_LABEL`, where something was.

    Raises InvalidRequest where the selected segment is another: an option may be left from before.
    """
    chosen, selected = chosen_label(options), str(options.get("label") or "")
    if chosen and selected and chosen != selected:
        raise InvalidRequest(
            f"{selected!r} is selected, but the option {FOR_LABEL} says {chosen!r}: set it to {AS_SELECTED!r}, "
            "or select the other label"
        )
    return {**options, "label": chosen} if chosen else dict(options)


def with_known_labels(options: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    """A request's options with its labels under the names by which they are known: a viewer may spell them otherwise,
    and sends clicks under that spelling too."""
    found = dict(options)
    for name in ("label", FOR_LABEL):
        sent = found.get(name)
        if isinstance(sent, str) and sent != AS_SELECTED:
            found[name] = known_label(sent, known) if sent.strip() else ""
    sent, label = options.get("label"), found.get("label")
    if sent and sent != label and sent in found and sent not in PROMPT_KEYS:  # clicks under the label's own name
        found[str(label)] = found.pop(str(sent))
    wanted = found.get("labels")
    names = wanted.split(",") if isinstance(wanted, str) else wanted
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        found["labels"] = [known_label(name, known) for name in names if name.strip()]
    return found


def title(name: str, hint: str) -> str:
    """What is shown as the name of a volume (``PatientID``) that is offered, with the slices to annotate."""
    return f"{name} | {hint}"
