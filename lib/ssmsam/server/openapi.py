"""What the OpenAPI document says beside what FastAPI knows: keys of JSON sent as text, parameters, answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ssmsam.server.clients.rest import INFERENCE, OPTIONS, SAMPLE, SUBMISSION, Key, object_schema

_LIVER = {"label": "liver", "client_id": "reader-a"}
EXAMPLES: dict[str, dict[str, Any]] = {
    "sam_2d": {**_LIVER, "foreground": [[45, 93, 30]], "background": [[70, 75, 30]]},
    "sam_3d": {**_LIVER, "roi": [26, 107, 50, 108, 30, 30], "z_range": "13-40"},
    "fewshot": {"labels": ["liver"], "client_id": "reader-a", "adapt": True},
    "ssm_sam": {"labels": ["liver"], "client_id": "reader-a", "budget_s": 30},
    "uncertainty_map": {**_LIVER},
    "accept_slice": {**_LIVER, "slice": 31},
    "empty_slice": {**_LIVER, "slice": 12},
    "withdraw_slice": {**_LIVER, "slice": 31},
    "undo": {"client_id": "reader-a"},
    "finish_volume": {"client_id": "reader-a", "confirm": True},
}
"""A request for each model: its ``params``."""

SUBMITTED = {
    "label_info": [{"name": "liver", "idx": 1}],
    "client_id": "reader-a",
    "partial": {"slices": {"liver": {"annotated": [31], "empty": [5]}}},
}
ASKED = {"k": 3, "labels": ["liver"], "client_id": "reader-a"}


PARAMETERS = {
    "token": "An access token, where people log in.",
    "client_id": "Who asks; without it, whoever asks without a name at that address.",
    "work": "embed: all slices through the encoder; segment: masks by a task checkpoint.",
    "method": "Which method is meant: fewshot, ssm_sam; of scoring: dice, uncertainty.",
    "model": "A model or a train task, by its name in /info/.",
    "strategy": "A strategy, by its name in /info/.",
    "image": "The id of an image.",
    "images": "Which images: all, labeled or unlabeled.",
    "id": "The id of an image.",
    "label": "The id of a label, which is that of its image.",
    "tag": "The label's tag: partial, final, original, or one of one's own; none is a submission.",
    "name": "The name of a job, a task checkpoint or an initialisation.",
    "session_id": "What PUT /session/ answered.",
    "output": "The kind of the answer.",
    "run_sync": "Answer when the work is done, not when it is queued.",
    "enqueue": "Wait for the one that runs.",
    "pin": "Let it answer whatever is annotated later.",
    "compress": "Whether the voxels of the file are compressed.",
    "check_sum": "Which file is expected, as ALGORITHM:DIGEST.",
    "check_if_running": "Only whether one runs.",
    "all": "Those that ended too.",
    "limit_cases": "The most images in the archive.",
    "uncompress": "The file is an archive, .zip or .tar(.gz), of DICOM files.",
    "expiry": "Seconds until it is forgotten; 0 for the server's usual time.",
    "update_ts": "Count the time until it is forgotten from now.",
}
"""What parameters mean, by their names."""


_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


@dataclass(frozen=True)
class Answer:
    """What a route answers with 200: an object with these keys, or a file where there is no name."""

    name: str
    about: str
    keys: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    """Key -> what it means, and an example of it, which is of its type."""

    @property
    def example(self) -> dict[str, Any]:
        return {name: value for name, (_, value) in self.keys.items()}

    def schema(self) -> dict[str, Any]:
        keys = {name: Key(_TYPES.get(type(value), "object"), about) for name, (about, value) in self.keys.items()}
        return {**object_schema(keys), "additionalProperties": True, "description": self.about, "title": self.name}


def _file(kind: str) -> Answer:
    return Answer("", f"The file ({kind}).")


_TASK = Answer(
    "ProcessTask", "Work in a process of its own, or null where there is none.",
    {
        "id": ("Of the job, see /jobs/{name}.", "3f0c6f1e-8c1d-4d1b-9a44-5a5f6f8f3c11"),
        "status": ("SUBMITTED, RUNNING, DONE, ERROR or STOPPED.", "RUNNING"),
        "request": ("What was asked for.", {"model": "fewshot_decoder"}),
        "start_ts": ("When it was queued.", "2026-03-01 10:12:00"),
        "end_ts": ("When it ended.", "2026-03-01 10:14:00"),
        "details": ("What the process wrote last.", []),
    },
)  # fmt: skip
_PARTIAL = ("All that is known now, in the shape of params.partial.", {"slices": {"liver": {"annotated": [31]}}})
_RECEIPT = Answer(
    "Receipt", "What became of a submission.",
    {
        "counted": ("What counts as annotated now, a line each, for people.", ["counted as annotated: 31 (liver)"]),
        "detail": ("The same in one line.", "counted as annotated: 31 (liver)"),
        "new_labels": ("Labels that nobody knew before.", []),
        "tag": ("final for a finished volume, else partial.", "partial"),
        "revision": ("Of the annotations.", 1),
        "partial": _PARTIAL,
    },
)  # fmt: skip
_STATE = {
    "active": ("The one that answers; empty for none yet.", "0002"),
    "previous": ("The one that answered before it.", "0001"),
}
_PINNED = {"pinned": ("Whether it answers whatever is annotated later.", False)}
_CHECKPOINT = Answer("CheckpointState", "Which one answers.", {**_STATE, **_PINNED})
_INFO = Answer(
    "Info", "What the server offers.",
    {
        "name": ("Of the app.", "ssmsam"),
        "version": ("Of the app.", "0.1.0"),
        "labels": ("The labels that are offered, in their order.", ["liver"]),
        "models": ("Name to type, labels, dimension, description and config (its options).",
                   {"sam_2d": {"type": "deepgrow", "dimension": 2}}),
        "trainers": ("Name to description and config.", {}),
        "strategies": ("Name to description and config.", {}),
        "scoring": ("Name to description.", {}),
        "train_stats": ("Name to how far a training is, or what came of it.", {}),
        "datastore": ("total, completed, finished and partial count images.", {"total": 7, "completed": 2}),
        "ssmsam": ("encoder, device, warm, embedding, set_aside (images that cannot be read), notices.",
                   {"warm": True}),
    },
)  # fmt: skip
_SAMPLE = Answer(
    "Sample", "The next image; without an id nothing is left, and message says so.",
    {
        "id": ("The image.", "case07"),
        "slices": ("The slices to annotate.", [31, 58]),
        "axis": ("Of a client's [i, j, k] along which they are counted; 2 are the stored slices.", 2),
        "slices_by_label": ("Label to its slices.", {"liver": [31, 58]}),
        "reasons": ("Why: slice, label, and a sentence.", []),
        "hint": ("The slices in words, for people.", "slices 31,58"),
        "assignments": ("Names of what is noted as asked for.", []),
        "message": ("Why there is none.", ""),
    },
)  # fmt: skip
_DETAILS = Answer(
    "Inference", "With output=json. With image it is the mask's file, its labels and a sentence in headers "
    "(X-Ssmsam-Labels, X-Ssmsam-Detail: percent-encoded JSON); with all both as multipart.",
    {
        "label_names": ("Label to value in the mask.", {"liver": 1}),
        "centroids": ("Label to the voxel [i, j, k] in its middle.", {"liver": [120, 88, 31]}),
        "detail": ("What was done, for people.", ""),
        "latencies": ("Seconds by phase.", {"total": 0.1}),
    },
)  # fmt: skip
_NOTED = Answer("Noted", "What is noted, by name.", {"ts": ("When, in seconds since 1970.", 1760000000)})
_NOTHING = Answer("Done", "Nothing: it is done.")
_PLACES: tuple[str, Any] = ("name, what, files and bytes of each kind.", [])
_ID = {"image": ("Its id.", "case07")}
_SENT_BACK = {"verdict": "send_back", "note": "the dome is missing", "client": "reader-b",
              "when": "2026-03-01T11:00:00+00:00"}  # fmt: skip

ANSWERS: dict[tuple[str, str], Answer] = {
    ("get", "/info/"): _INFO,
    ("post", "/infer/{model}"): _DETAILS,
    ("post", "/activelearning/{strategy}"): _SAMPLE,
    **{(method, path): _TASK for path in ("/batch/infer", "/train/", "/scoring/") for method in ("get", "delete")},
    **{("post", path): _TASK for path in ("/batch/infer/{model}", "/train/{model}", "/scoring/{method}")},
    ("get", "/datastore/"): Answer(
        "Contents", "Counts; with output=all every image with its labels, with train pairs of files.",
        {"total": ("Images.", 7), "completed": ("Images to learn from.", 2),
         "objects": ("With output=all: image to its labels.", {})},
    ),
    ("put", "/datastore/image"): Answer("Added", "Its id.", _ID),
    ("get", "/datastore/image"): _file("the image"),
    ("get", "/datastore/label"): _file("the label"),
    ("get", "/datastore/dataset"): _file("a ZIP archive"),
    ("get", "/datastore/annotations/masks"): _file("a label map, NRRD"),
    ("get", "/studies"): Answer(
        "Studies", "Every image, by name.",
        {"studies": (
            "image, state (new, in work, to review, finished, unreadable), reason, labels, expected (label to Dice), "
            "workers, seconds, review and info of each.",
            [{"image": "case07", "state": "in work", "reason": "", "labels": {"liver": 3}, "info": {},
              "expected": {"liver": 0.93}, "seconds": 340, "review": None,
              "workers": [{"client": "reader-a", "last": "2026-03-01T10:12:00+00:00", "seconds": 340,
                           "annotated": True}]}]),
         "remote": ("Whether the images are in an archive.", False)},
    ),
    ("post", "/studies/review"): Answer(
        "Reviewed", "What counts now.",
        {**_ID, "state": ("finished, or in work again.", "in work"),
         "review": ("verdict, note, client and when.", _SENT_BACK),
         "detail": ("The same in words.", "sent back: the dome is missing")},
    ),
    ("get", "/studies/measurements"): Answer(
        "Measurements", "By slice; none where nothing was measured.",
        {**_ID, "measurements": (
            "kind (point, arrow, line, polyline, polygon), source (SR or PR), text, slice, points [i, j, k], and "
            "prompts for sam_2d.",
            [{"kind": "line", "source": "SR", "text": "Long Axis 23.1 mm, Liver", "slice": 31,
              "points": [[110.5, 84, 31], [131.2, 90, 31]],
              "prompts": {"slice": 31, "scribbles": [{"points": [[112.6, 84.6, 31], [129.1, 89.4, 31]]}]}}])},
    ),
    ("get", "/studies/agreement"): Answer(
        "Agreements", "None where no two drew the same slice.",
        {**_ID, "agreement": (
            "label, clients, slices (how many), dice, and per_slice the axis, slice and dice.",
            [{"label": "liver", "clients": ["reader-a", "reader-b"], "slices": 1, "dice": 0.94,
              "per_slice": [{"axis": 2, "slice": 31, "dice": 0.94}]}])},
    ),
    ("get", "/studies/about"): Answer(
        "StudyDetails", "What is known once the image is opened.",
        {**_ID, "modality": ("CT, MR or what the file says.", "CT"),
         "shape": ("(columns, rows, slices).", [512, 512, 120]),
         "spacing": ("The same, in millimetres.", [0.7, 0.7, 2.5]),
         "formats": ("What GET /studies/export can make of it.", ["nifti", "nrrd", "dicom_seg"]),
         "file": ("A name for the file, with its suffix.", "image.nii.gz")},
    ),
    **{("get", f"/studies/{what}"): _file("PNG") for what in ("thumbnail", "picture")},
    ("get", "/studies/image"): _file("a NIfTI file"),
    ("get", "/studies/export"): _file("NIfTI, NRRD, DICOM SEG or RT Structure Set"),
    ("get", "/studies/dataset"): _file("a ZIP archive"),
    **{("put", f"/datastore/{what}"): _RECEIPT for what in ("label", "label/info", "annotations", "annotations/slice")},
    ("get", "/datastore/annotations"): Answer(
        "KnownSlices", "What is known of an image's slices.",
        {"partial": _PARTIAL, "finished": ("Whether the volume was declared finished.", False),
         "revisions": ("revision, client_id, when and counted of each change.", [])},
    ),
    **{("get", f"/datastore/{what}/info"): _NOTED for what in ("image", "label")},
    **{(method, f"/datastore/{what}"): _NOTHING for what in ("image", "label") for method in ("head", "delete")},
    ("put", "/datastore/image/info"): _NOTHING,
    ("delete", "/datastore/annotations"): _NOTHING,
    ("post", "/datastore/annotations/opened"): _NOTHING,
    ("get", "/checkpoints"): Answer(
        "Checkpoints", "All task checkpoints of a method.",
        {**_STATE, **_PINNED, "heads": ("Name to card: learned_from, dice_estimate, settings, created.",
                                        {"0002": {"learned_from": {"liver": 3}}})},
    ),
    ("get", "/checkpoints/{name}/file"): _file("safetensors"),
    ("put", "/checkpoints/{name}"): Answer("Taken", "Its name.", {"head": ("It.", "0003")}),
    ("delete", "/checkpoints/{name}"): Answer("Removed", "Its name.", {"removed": ("It.", "0001")}),
    ("post", "/checkpoints/{name}/activate"): _CHECKPOINT,
    ("post", "/checkpoints/unpin"): _CHECKPOINT,
    ("delete", "/checkpoints/adaptation"): Answer(
        "Cancelled", "Whether there was any.", {"cancelled": ("Whether.", True)}
    ),
    ("get", "/initialisations"): Answer("Initialisations", "All of them.", {**_STATE, "starts": ("Name to card.", {})}),
    **{("post", f"/initialisations/{what}"): Answer("InitialisationState", "Which is used.", _STATE)
       for what in ("roll_back", "{name}/activate")},
    ("get", "/cache"): Answer("CachePlaces", "What there is.", {"places": _PLACES}),
    ("delete", "/cache"): Answer("Purged", "What was removed.", {"removed": _PLACES}),
    ("get", "/logs/"): _file("a page, or text"),
    ("get", "/logs/gpu"): _file("text"),
    **{(method, "/session/{session_id}"): Answer("Session", "It.", {"image": ("Its file.", "a.nii.gz")})
       for method in ("get", "delete")},
    ("put", "/session/"): Answer(
        "NewSession", "What was made.",
        {"session_id": ("To be sent with inferences.", "0f8fad5b-d9cb-469f-a165-70867728950e"),
         "session_info": ("Its details.", {"image": "a.nii.gz", "expiry": 3600})},
    ),
    ("get", "/model/info/{model}"): _NOTED,
    **{(method, "/model/{model}"): _file("none: weights are chosen at start") for method in ("get", "put", "delete")},
}  # fmt: skip
"""What the routes answer. /jobs describes itself."""


def describe(document: dict[str, Any]) -> None:
    """Let an OpenAPI document describe every parameter, every key of ``params`` with a request for each model, and
    every answer with an example."""
    _describe(document, "post", "/infer/{model}", {**INFERENCE, **OPTIONS}, EXAMPLES)
    _describe(document, "put", "/datastore/label", SUBMISSION, {"submission": SUBMITTED})
    body = document["paths"]["/activelearning/{strategy}"]["post"]["requestBody"]["content"]["application/json"]
    body |= {"schema": object_schema(SAMPLE), "example": ASKED}
    for method, path, operation in operations(document):
        operation.setdefault("description", f"{operation.get('summary', path)}.")
        for parameter in operation.get("parameters", ()):
            parameter.setdefault("description", PARAMETERS.get(parameter["name"], ""))
        if answer := ANSWERS.get((method, path)):
            _describe_answer(document, operation, answer)


def operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path and description of every call."""
    for path, known in document["paths"].items():
        for method, operation in known.items():
            yield method, path, operation


def _describe_answer(document: dict[str, Any], operation: dict[str, Any], answer: Answer) -> None:
    if not answer.name:
        content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        operation["responses"]["200"] = {"description": answer.about, "content": content}
        return
    document.setdefault("components", {}).setdefault("schemas", {})[answer.name] = answer.schema()
    described: dict[str, Any] = {"schema": {"$ref": f"#/components/schemas/{answer.name}"}, "example": answer.example}
    operation["responses"]["200"] = {"description": answer.about, "content": {"application/json": described}}


def _describe(
    document: dict[str, Any], method: str, path: str, keys: Mapping[str, Key], examples: Mapping[str, Any]
) -> None:
    """The form field ``params`` holds JSON as text."""
    form = document["paths"][path][method]["requestBody"]["content"]["multipart/form-data"]
    schema = form["schema"]
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    schema["properties"]["params"] |= {
        "description": "A JSON object. " + " ".join(f"`{name}`: {key.about}" for name, key in keys.items()),
        "contentMediaType": "application/json",
        "contentSchema": object_schema(keys),
        "examples": [json.dumps(example) for example in examples.values()],
    }
    form["examples"] = {name: {"value": {"params": json.dumps(example)}} for name, example in examples.items()}
