"""The keys of requests: what clients may send, described once, checked, and published in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from ssmsam.service.errors import InvalidRequest


@dataclass(frozen=True)
class Key:
    """One key of a JSON object that clients send, as OpenAPI describes it."""

    kind: str
    """Its JSON type, or several joined by ``|``."""
    about: str
    example: Any = None

    def schema(self) -> dict[str, Any]:
        kinds = self.kind.split("|")
        schema: dict[str, Any] = {"type": kinds[0] if len(kinds) == 1 else kinds, "description": self.about}
        if "array" in kinds:
            schema["items"] = {}
        return schema if self.example is None else {**schema, "examples": [self.example]}


CLIENT = {
    "client_id": Key("string", "Who asks. Viewers that send none share one screen.", "reader-a"),
    "viewer": Key("string", "Which viewer asks, such as ohif or slicer.", "ohif"),
}
ANSWER = {
    "result_extension": Key("string", "File type of the mask: .nrrd, .nii.gz or .nii.", ".nrrd"),
    "result_dtype": Key("string", "Voxel type of the mask.", "uint8"),
    "result_compress": Key("boolean", "Whether the voxels of the mask file are compressed; true unless told."),
    "restore_label_idx": Key("boolean", "Sent by OHIF; has no effect."),
}
PROMPTS = {
    "label": Key("string", "The label that the request is about: the segment that is selected.", "liver"),
    "foreground": Key(
        "array|string", "Clicks in the organ: voxels [i, j, k] = (column, row, stored slice), or [x, y] with slice.",
        [[120, 88, 31]],
    ),
    "background": Key("array|string", "Clicks where the organ is not, in the same way.", [[60, 90, 31]]),
    "roi": Key(
        "array|string", "A box: [i0, i1, j0, j1, k0, k1], pairs in either order, or [x0, y0, x1, y1] with slice.",
        [80, 150, 60, 120, 31, 31],
    ),
    "slice": Key("integer|string", "The stored slice that the request is about, counted from 0.", 31),
    "current_point": Key("array", "The newest click, [i, j, k]."),
    "reset_state": Key("boolean", "Begin a new object: forget what was clicked before."),
    "points": Key("array", "Clicks as VISTA clients send them; not used."),
    "point_labels": Key("array", "The same; not used."),
    "label_prompt": Key("array", "Numbers of the labels to segment, as /info/ counts them.", [1, 2]),
    "labels": Key("array|string", "Names of the labels to segment, all annotated ones unless told.", ["liver"]),
    "label_info": Key("array|object|string", "Which value of a mask that is sent means which label."),
    "selected_label_name": Key("string", "The label that scribbles are about; not used."),
}  # fmt: skip
STORING = {
    "save_label": Key("boolean", "Keep the mask in the datastore."),
    "label_tag": Key("string", "The tag to keep it under.", "original"),
}
STOCK = {
    name: Key("string|integer|boolean|number|array|object", "An option of MONAI Label; has no effect here.")
    for name in ("device", "model", "image", "logging", "multi_gpu", "gpus", "max_workers", "max_batch_size", "images")
}
INFERENCE = {**CLIENT, **ANSWER, **PROMPTS, **STORING, **STOCK}
"""What every model accepts beside its own options. Viewers send prompts along to models that need none."""

CONFIRM = {"confirm": Key("boolean", "finish_volume: finish at once, without being asked once more.")}
OPTIONS = {
    "for_label": Key("string", "The label, where the viewer does not send which segment is selected."),
    "propagate": Key("boolean", "sam_3d: go on to the neighbouring slices; true unless told."),
    "max_mm": Key("number", "sam_3d: how far from a click it may go, in millimetres; 0 for no limit."),
    "z_range": Key("string|array", "sam_3d: first and last slice that it may reach.", "10-50"),
    "adapt": Key("boolean", "fewshot, ssm_sam: adapt to the annotated slices; true unless told."),
    "wait": Key("boolean", "fewshot, ssm_sam: adapt first and answer then; otherwise adaptation runs beside."),
    "only_this_image": Key("boolean", "fewshot, ssm_sam: learn from this image alone."),
    "budget_s": Key("number", "The most seconds that adaptation, or the choice of slices, may take."),
    "views": Key("integer", "uncertainty_map: how many disturbed copies of a slice are compared."),
    **CONFIRM,
}
"""The options that models publish in /info/, described."""

SUBMISSION = {
    **CLIENT,
    "label_info": Key(
        "array|object|string", "Which value of the mask means which label.", [{"name": "liver", "idx": 1}]
    ),
    "partial": Key(
        "object|array|string", "Which slices are truth, said outright.",
        {"version": 1, "axis": 2, "slices": {"liver": {"annotated": [31], "empty": [5], "withdraw": []}}},
    ),
    "empty_assigned": Key(
        "boolean|array", "Slices that were asked for and are not drawn do not show the label: true, or which labels."
    ),
    "model": Key("string", "The model that was used; noted with the label."),
    "segmentationMeta": Key("object", "What a reviewer said; noted with the label."),
    "label_names": Key("object|array", "Labels of a proposal; noted with the label."),
    "params": Key("object", "Details of a proposal; noted with the label."),
}  # fmt: skip
SAMPLE = {
    **CLIENT,
    "k": Key("integer", "How many slices to name.", 3),
    "labels": Key("array|string", "For which labels; all annotated ones unless told.", ["liver"]),
    "for_label": Key("string", "The same for viewers that can choose one."),
    "image": Key("string", "The image; any that is not finished unless told."),
    "budget_s": Key("number", "The most seconds that the choice may take."),
    "strategy": Key("string", "Has no effect: the route names it."),
    **{name: Key("string|integer|boolean", "Has no effect.") for name in ("label_tag", "device", "model")},
}


def require_keys(sent: Mapping[str, Any], valid: Iterable[str], *, where: str) -> None:
    """Refuse a key that nobody reads, with the nearest valid one. Raises InvalidRequest.

    Example:
        >>> require_keys({"adept": False}, ["adapt", "labels"], where="params")
        Traceback (most recent call last):
        ssmsam.service.errors.InvalidRequest: params has the key 'adept', which is not known; did you mean 'adapt'?
    """
    known = sorted(set(valid))
    for name in sent:
        if name not in known:
            near = get_close_matches(str(name), known, n=1, cutoff=0.5)
            step = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise InvalidRequest(f"{where} has the key {str(name)[:40]!r}, which is not known; {step}")


def object_schema(keys: Mapping[str, Key]) -> dict[str, Any]:
    """The JSON schema of an object with these keys and no others."""
    return {
        "type": "object",
        "properties": {name: key.schema() for name, key in keys.items()},
        "additionalProperties": False,
    }
