"""Requests of all clients: their keys, described once, checked and published, and the commands that they become."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ssmsam.fewshot.config import DEFAULTS
from ssmsam.progress import Progress, silent
from ssmsam.server.clients.ohif import labels_by_number, replaces_its_screen
from ssmsam.server.clients.prompts import read_flag
from ssmsam.server.clients.slicer import ALL_ANNOTATED, FOR_LABEL, with_chosen_label, with_known_labels
from ssmsam.service.annotated_studies import FINAL, PARTIAL
from ssmsam.service.errors import InvalidRequest
from ssmsam.service.identifiers import VOLUME_SUFFIXES, safe_name
from ssmsam.service.images import Source
from ssmsam.service.mask_files import DEFAULT_FORMAT, DTYPES, MaskFormat

ORIGINAL = "original"
"""The tag of masks that a model made."""


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
    "answer": Key(
        "string",
        "sam_2d: `volume` for the mask as a file, or `slice` for the pixels of its slice in the details.",
        "slice",
    ),
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
    "scribbles": Key(
        "array|string",
        "Lines through the organ, or with negative where it is not: objects with points (as in foreground, or with "
        "space lps or ras in millimetres), each on one slice.",
        [{"points": [[110, 84, 31], [120, 88, 31], [131, 90, 31]], "negative": False}],
    ),
    "lasso": Key(
        "array|string", "Closed lines drawn loosely round the organ, in the same way, one on a slice.",
        [{"points": [[90, 60, 31], [150, 66, 31], [148, 118, 31], [86, 112, 31]]}],
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


LABELS_HEADER, DETAIL_HEADER = "X-Ssmsam-Labels", "X-Ssmsam-Detail"
"""What an answer that is only a file says beside it: which value means which label, and a sentence for people."""


def in_header(value: Any) -> str:
    """A value as a header holds it: percent-encoded JSON."""
    return quote(json.dumps(value))


@dataclass(frozen=True, kw_only=True, eq=False)
class InferenceCommand:
    """A model is to be run on an image."""

    image: Source
    model: str = ""
    client: str = ""
    label: str = ""
    """The label that it is about, by the name under which it is known; "" where nothing says it."""
    label_as_sent: str = ""
    """How the client spells that label, by which its viewer finds its segment."""
    format: MaskFormat = DEFAULT_FORMAT
    tag: str = ORIGINAL
    """The tag of the mask, under which it is kept in the datastore where ``keep`` says so."""
    keep: bool = False
    slice_only: bool = False
    """Whether the answer is one slice, in the details, and no file."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Prompts and the model's own options, as the client sent them."""
    progress: Progress = silent

    @classmethod
    def read(cls, request: Mapping[str, Any], *, image: Source, known: Sequence[str] = ()) -> InferenceCommand:
        """Read a request. ``known`` are the names of labels. Raises InvalidRequest, InvalidName and InvalidPrompt."""
        tag = safe_name(str(request.get("label_tag") or ORIGINAL), what="a label tag")
        keep = bool(request.get("save_label"))
        if keep and tag in (PARTIAL, FINAL):
            raise InvalidRequest(f"only a person's work is kept under {tag!r}: choose another label_tag, or 'original'")
        if not isinstance(request.get("label") or "", str):
            raise InvalidRequest(f"label has to be the name of a label, got {str(request['label'])[:40]}")
        answer = request.get("answer") or "volume"
        if answer not in ("slice", "volume"):
            raise InvalidRequest(f"answer has to be 'slice' or 'volume', got {str(answer)[:40]!r}")
        if answer == "slice" and (request.get("model") != "sam_2d" or keep):
            raise InvalidRequest("answer 'slice' is for sam_2d without save_label: other answers are files")
        options = with_chosen_label(with_known_labels(request, known))
        label = str(options.get("label") or "")
        return cls(
            image=image,
            model=str(request.get("model") or ""),
            client=str(request.get("client_id") or ""),
            label=label,
            label_as_sent=str(request.get("label") or label),
            format=read_format(request),
            tag=tag,
            keep=keep,
            slice_only=answer == "slice",
            options=options,
        )


def read_format(request: Mapping[str, Any]) -> MaskFormat:
    """The file that a client wants: ``result_extension`` (.nrrd, .nii.gz, .nii), ``result_dtype`` and
    ``result_compress``. Raises InvalidRequest and InvalidPrompt."""
    suffix = str(request.get("result_extension") or ".nrrd").lower()
    suffix = suffix if suffix.startswith(".") else f".{suffix}"
    if suffix not in VOLUME_SUFFIXES:
        raise InvalidRequest(f"result_extension {suffix!r} is not possible; use one of {', '.join(VOLUME_SUFFIXES)}")
    dtype = str(request.get("result_dtype") or "uint8")
    if dtype not in DTYPES:
        raise InvalidRequest(f"result_dtype {dtype!r} is not possible; use one of {', '.join(DTYPES)}")
    compress = request.get("result_compress")
    return MaskFormat(
        suffix=suffix, dtype=dtype, compress=True if compress is None else read_flag(compress, "result_compress")
    )


_Options = TypeVar("_Options", bound="Options")


class Options(BaseModel):
    """Options of a request, checked. What is empty or missing has its default, other keys are let through."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    @classmethod
    def read(cls: type[_Options], given: Mapping[str, Any]) -> _Options:
        """Raises InvalidRequest, which names the first option that is wrong and says what it should be.

        Example:
            >>> NextSampleCommand.read({"k": 200})
            Traceback (most recent call last):
            ssmsam.service.errors.InvalidRequest: k: input should be less than or equal to 100, got 200
        """
        said = {name: given[name] for name in cls.model_fields if given.get(name) not in (None, "")}
        try:
            return cls.model_validate(said)
        except ValidationError as error:
            wrong = error.errors()[0]
            if why := wrong.get("ctx", {}).get("error"):  # of a reader of ours
                raise InvalidRequest(str(why)) from None
            message = wrong["msg"][0].lower() + wrong["msg"][1:]
            raise InvalidRequest(f"{wrong['loc'][0]}: {message}, got {str(wrong['input'])[:40]}") from None


def read_names(value: Any) -> list[str]:
    """Names in a list, or separated by commas; none at all is an empty list. Raises InvalidRequest."""
    names = value.split(",") if isinstance(value, str) else value or []
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise InvalidRequest("labels has to be a list of names, or names separated by commas")
    return [name.strip() for name in names if name.strip()]


Flag = Annotated[bool, BeforeValidator(lambda value, info: read_flag(value, str(info.field_name)))]
Names = Annotated[tuple[str, ...], BeforeValidator(read_names)]


class FewShotCommand(Options):
    """What a client asks of a model that learns from annotated slices."""

    labels: Names = ()
    """None for all that are annotated."""
    only_this_image: Flag = False
    """Learn from this image alone."""
    wait: Flag = False
    """Adapt first and answer then."""
    adapt: Flag = True
    budget_s: float = Field(default=DEFAULTS.adaptation.budget_s, gt=0, le=3600)
    replaces_screen: bool = False
    """Whether the viewer drops every segment that the answer leaves out."""

    @classmethod
    def of(cls, options: Mapping[str, Any], offered: Sequence[str]) -> FewShotCommand:
        """Read the options of a request; ``offered`` are the labels as /info/ counts them. Raises InvalidRequest."""
        labels = labels_by_number(options, offered) or options.get("labels")
        return cls.read({**options, "labels": labels, "replaces_screen": replaces_its_screen(options)})


class NextSampleCommand(Options):
    """What a client asks of a strategy."""

    k: int = Field(default=3, ge=1, le=100)
    labels: Names = ()
    image: str = ""
    budget_s: float = Field(default=10.0, gt=0, le=600)

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> NextSampleCommand:
        """Read a request. Raises InvalidRequest."""
        names = read_names(request.get("labels") or request.get(FOR_LABEL))
        return cls.read({**request, "labels": [name for name in dict.fromkeys(names) if name != ALL_ANNOTATED]})


def object_schema(keys: Mapping[str, Key]) -> dict[str, Any]:
    """The JSON schema of an object with these keys and no others."""
    return {
        "type": "object",
        "properties": {name: key.schema() for name, key in keys.items()},
        "additionalProperties": False,
    }
