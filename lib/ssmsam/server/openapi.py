"""What the OpenAPI document says beside what FastAPI knows: keys of JSON sent as text, parameters, answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ssmsam.server.clients.rest import INFERENCE, OPTIONS, SAMPLE, SUBMISSION, Key, object_schema

_LIVER = {"label": "liver", "client_id": "reader-a"}
EXAMPLES: dict[str, dict[str, Any]] = {
    "sam_2d": {**_LIVER, "foreground": [[120, 88, 31]], "background": [[60, 90, 31]]},
    "sam_3d": {**_LIVER, "roi": [80, 150, 60, 120, 31, 31], "z_range": "20-50"},
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


@dataclass(frozen=True)
class Answer:
    """What a route answers with 200: an object with these keys, or a file where there are none."""

    name: str
    about: str
    keys: Mapping[str, Key]
    example: Any = None

    def schema(self) -> dict[str, Any]:
        return {**object_schema(self.keys), "additionalProperties": True, "description": self.about, "title": self.name}


def _file(kind: str) -> Answer:
    return Answer("", f"The file ({kind}).", {})


_TASK = Answer(
    "ProcessTask", "Work in a process of its own, or null where there is none.",
    {
        "id": Key("string", "Of the job, see /jobs/{name}."),
        "status": Key("string", "SUBMITTED, RUNNING, DONE, ERROR or STOPPED."),
        "request": Key("object", "What was asked for."),
        "start_ts": Key("string", "When it was queued."),
        "end_ts": Key("string", "When it ended."),
        "details": Key("array", "What the process wrote last."),
    },
    {"id": "3f0c6f1e-8c1d-4d1b-9a44-5a5f6f8f3c11", "status": "RUNNING", "request": {"model": "fewshot_decoder"}},
)  # fmt: skip
_RECEIPT = Answer(
    "Receipt", "What became of a submission.",
    {
        "counted": Key("array", "What counts as annotated now, a line each, for people."),
        "detail": Key("string", "The same in one line."),
        "new_labels": Key("array", "Labels that nobody knew before."),
        "tag": Key("string", "final for a finished volume, else partial."),
        "revision": Key("integer", "Of the annotations."),
        "partial": Key("object|array", "All that is known now, in the shape of params.partial."),
    },
    {"counted": ["counted as annotated: 31 (liver)"], "new_labels": [], "tag": "partial", "revision": 1},
)  # fmt: skip
_STATE = {
    "active": Key("string", "The one that answers; empty for none yet."),
    "pinned": Key("boolean", "Whether it answers whatever is annotated later."),
    "previous": Key("string", "The one that answered before it."),
}
_CHECKPOINT = Answer("CheckpointState", "Which one answers.", _STATE, {"active": "0002", "pinned": False})
_CHECKPOINTS = Answer(
    "Checkpoints", "All task checkpoints of a method.",
    {**_STATE, "heads": Key("object", "Name to card: learned_from, dice_estimate, settings, created.")},
    {"active": "0002", "pinned": False, "previous": "0001", "heads": {"0002": {"learned_from": {"liver": 3}}}},
)  # fmt: skip
_START = {"active": _STATE["active"], "previous": _STATE["previous"]}
_INFO = Answer(
    "Info", "What the server offers.",
    {
        "name": Key("string", "Of the app."),
        "version": Key("string", "Of the app."),
        "labels": Key("array", "The labels that are offered, in their order."),
        "models": Key("object", "Name to type, labels, dimension, description and config (its options)."),
        "trainers": Key("object", "Name to description and config."),
        "strategies": Key("object", "Name to description and config."),
        "scoring": Key("object", "Name to description."),
        "train_stats": Key("object", "Name to how far a training is, or what came of it."),
        "datastore": Key("object", "total, completed, finished and partial count images."),
        "ssmsam": Key("object", "encoder, device, warm, embedding, set_aside (images that cannot be read), notices."),
    },
    {"name": "ssmsam", "labels": ["liver"], "models": {"sam_2d": {"type": "deepgrow", "dimension": 2}}},
)  # fmt: skip
_SAMPLE = Answer(
    "Sample", "The next image; without an id nothing is left, and message says so.",
    {
        "id": Key("string", "The image."),
        "slices": Key("array", "The slices to annotate."),
        "axis": Key("integer", "Of a client's [i, j, k] along which they are counted; 2 are the stored slices."),
        "slices_by_label": Key("object", "Label to its slices."),
        "reasons": Key("array", "Why: slice, label, and a sentence."),
        "hint": Key("string", "The slices in words, for people."),
        "assignments": Key("array", "Names of what is noted as asked for."),
        "message": Key("string", "Why there is none."),
    },
    {"id": "case07", "slices": [31, 58], "axis": 2, "slices_by_label": {"liver": [31, 58]}},
)  # fmt: skip
_DETAILS = Answer(
    "Inference", "With output=json. With image it is the mask's file, its labels and a sentence in headers "
    "(X-Ssmsam-Labels, X-Ssmsam-Detail: percent-encoded JSON); with all both as multipart.",
    {
        "label_names": Key("object", "Label to value in the mask."),
        "centroids": Key("object", "Label to the voxel [i, j, k] in its middle."),
        "detail": Key("string", "What was done, for people."),
        "latencies": Key("object", "Seconds by phase."),
    },
    {"label_names": {"liver": 1}, "centroids": {"liver": [120, 88, 31]}, "latencies": {"total": 0.1}},
)  # fmt: skip
_KNOWN = Answer(
    "KnownSlices", "What is known of an image's slices.",
    {
        "partial": _RECEIPT.keys["partial"],
        "finished": Key("boolean", "Whether the volume was declared finished."),
        "revisions": Key("array", "revision, client_id, when and counted of each change."),
    },
    {"partial": {"slices": {"liver": {"annotated": [31]}}}, "finished": False, "revisions": []},
)  # fmt: skip
_NOTED = Answer("Noted", "What is noted, by name.", {}, {"ts": 1760000000})
_NOTHING = Answer("Done", "Nothing: it is done.", {}, {})
_PLACES = Key("array", "name, what, files and bytes of each kind.")

ANSWERS: dict[tuple[str, str], Answer] = {
    ("get", "/info/"): _INFO,
    ("post", "/infer/{model}"): _DETAILS,
    ("post", "/activelearning/{strategy}"): _SAMPLE,
    **{(method, path): _TASK for path in ("/batch/infer", "/train/", "/scoring/") for method in ("get", "delete")},
    **{("post", path): _TASK for path in ("/batch/infer/{model}", "/train/{model}", "/scoring/{method}")},
    ("get", "/datastore/"): Answer(
        "Contents", "Counts; with output=all every image with its labels, with train pairs of files.",
        {"total": Key("integer", "Images."), "completed": Key("integer", "Images to learn from."),
         "objects": Key("object", "With output=all: image to its labels.")},
        {"total": 7, "completed": 2},
    ),
    ("put", "/datastore/image"): Answer("Added", "Its id.", {"image": Key("string", "")}, {"image": "case07"}),
    ("get", "/datastore/image"): _file("the image"),
    ("get", "/datastore/label"): _file("the label"),
    ("get", "/datastore/dataset"): _file("a ZIP archive"),
    ("get", "/datastore/annotations/masks"): _file("a label map, NRRD"),
    ("get", "/studies"): Answer(
        "Studies", "Every image, by name.",
        {"studies": Key("array", "image, state (new, in work, to review, finished, unreadable), reason, labels, "
                                 "expected (label to Dice), workers, seconds, review and info of each."),
         "remote": Key("boolean", "Whether the images are in an archive.")},
        {"studies": [{"image": "case07", "state": "in work", "reason": "", "labels": {"liver": 3}, "info": {},
                      "expected": {"liver": 0.93}, "seconds": 340, "review": None,
                      "workers": [{"client": "reader-a", "last": "2026-03-01T10:12:00+00:00", "seconds": 340,
                                   "annotated": True}]}],
         "remote": False},
    ),
    ("post", "/studies/review"): Answer(
        "Reviewed", "What counts now.",
        {"image": Key("string", "Its id."), "state": Key("string", "finished, or in work again."),
         "review": Key("object", "verdict, note, client and when."), "detail": Key("string", "The same in words.")},
        {"image": "case07", "state": "in work", "detail": "sent back: the dome is missing",
         "review": {"verdict": "send_back", "note": "the dome is missing", "client": "reader-b",
                    "when": "2026-03-01T11:00:00+00:00"}},
    ),
    ("get", "/studies/measurements"): Answer(
        "Measurements", "By slice; none where nothing was measured.",
        {"image": Key("string", "Its id."),
         "measurements": Key("array", "kind (point, arrow, line, polyline, polygon), source (SR or PR), text, slice, "
                                      "points [i, j, k], and prompts for sam_2d.")},
        {"image": "1.2.840.5", "measurements": [
            {"kind": "line", "source": "SR", "text": "Long Axis 23.1 mm, Liver", "slice": 31,
             "points": [[110.5, 84, 31], [131.2, 90, 31]],
             "prompts": {"slice": 31, "scribbles": [{"points": [[112.6, 84.6, 31], [129.1, 89.4, 31]]}]}}]},
    ),
    ("get", "/studies/agreement"): Answer(
        "Agreements", "None where no two drew the same slice.",
        {"image": Key("string", "Its id."),
         "agreement": Key("array", "label, clients, slices (how many), dice, and per_slice the axis, slice and dice.")},
        {"image": "case07", "agreement": [
            {"label": "liver", "clients": ["reader-a", "reader-b"], "slices": 1, "dice": 0.94,
             "per_slice": [{"axis": 2, "slice": 31, "dice": 0.94}]}]},
    ),
    ("get", "/studies/about"): Answer(
        "StudyDetails", "What is known once the image is opened.",
        {"image": Key("string", "Its id."), "modality": Key("string", "CT, MR or what the file says."),
         "shape": Key("array", "(columns, rows, slices)."), "spacing": Key("array", "The same, in millimetres."),
         "file": Key("string", "A name for the file, with its suffix.")},
        {"image": "case07", "modality": "CT", "shape": [512, 512, 120], "spacing": [0.7, 0.7, 2.5]},
    ),
    **{("get", f"/studies/{what}"): _file("PNG") for what in ("thumbnail", "picture")},
    ("get", "/studies/image"): _file("a NIfTI file"),
    ("get", "/studies/export"): _file("NIfTI, NRRD, DICOM SEG or RT Structure Set"),
    ("get", "/studies/dataset"): _file("a ZIP archive"),
    ("put", "/datastore/label"): _RECEIPT,
    ("put", "/datastore/label/info"): _RECEIPT,
    ("put", "/datastore/annotations"): _RECEIPT,
    ("get", "/datastore/annotations"): _KNOWN,
    **{("get", f"/datastore/{what}/info"): _NOTED for what in ("image", "label")},
    **{(method, f"/datastore/{what}"): _NOTHING for what in ("image", "label") for method in ("head", "delete")},
    ("put", "/datastore/image/info"): _NOTHING,
    ("delete", "/datastore/annotations"): _NOTHING,
    ("post", "/datastore/annotations/opened"): _NOTHING,
    ("get", "/checkpoints"): _CHECKPOINTS,
    ("get", "/checkpoints/{name}/file"): _file("safetensors"),
    ("put", "/checkpoints/{name}"): Answer("Taken", "Its name.", {"head": Key("string", "")}, {"head": "0003"}),
    ("delete", "/checkpoints/{name}"): Answer("Removed", "Its name.", {"removed": Key("string", "")}, {"removed": "1"}),
    ("post", "/checkpoints/{name}/activate"): _CHECKPOINT,
    ("post", "/checkpoints/unpin"): _CHECKPOINT,
    ("delete", "/checkpoints/adaptation"): Answer(
        "Cancelled", "Whether there was any.", {"cancelled": Key("boolean", "")}, {"cancelled": True}
    ),
    ("get", "/initialisations"): Answer(
        "Initialisations", "All of them.", {**_START, "starts": Key("object", "Name to card.")}, {"active": "shipped"}
    ),
    **{("post", f"/initialisations/{what}"): Answer("InitialisationState", "Which is used.", _START, {"active": "1"})
       for what in ("roll_back", "{name}/activate")},
    ("get", "/cache"): Answer("CachePlaces", "What there is.", {"places": _PLACES}, {"places": []}),
    ("delete", "/cache"): Answer("Purged", "What was removed.", {"removed": _PLACES}, {"removed": []}),
    ("get", "/logs/"): _file("a page, or text"),
    ("get", "/logs/gpu"): _file("text"),
    **{(method, "/session/{session_id}"): Answer("Session", "It.", {}, {"image": "a.nii.gz", "expiry": 3600})
       for method in ("get", "delete")},
    ("put", "/session/"): Answer(
        "NewSession", "What was made.",
        {"session_id": Key("string", "To be sent with inferences."), "session_info": Key("object", "Its details.")},
        {"session_id": "0f8fad5b-d9cb-469f-a165-70867728950e"},
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
    _describe_json(document, "/activelearning/{strategy}", SAMPLE, ASKED)
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
        "examples": [_text(example) for example in examples.values()],
    }
    form["examples"] = {name: {"value": {"params": _text(example)}} for name, example in examples.items()}


def _describe_json(document: dict[str, Any], path: str, keys: Mapping[str, Key], example: Any) -> None:
    content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    content["schema"] = object_schema(keys)
    content["example"] = example


def _text(value: Any) -> str:
    return json.dumps(value)
