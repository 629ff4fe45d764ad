"""What clients send becomes commands with types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ssmsam.server.clients.rest import FewShotCommand, InferenceCommand, read_format
from ssmsam.service.errors import InvalidRequest
from ssmsam.service.images import Source
from ssmsam.service.mask_files import MaskFormat

IMAGE = Source("a", Path("a.nii.gz"), "digest", "a")
DEFAULTS = {"adapt": True, "wait": False, "only_this_image": False, "budget_s": 30.0}


def read(**request: Any) -> InferenceCommand:
    return InferenceCommand.read(request, image=IMAGE, known=("Left Kidney", "liver"))


@pytest.mark.parametrize("request_", [{"result_extension": ".png"}, {"result_dtype": "object"}, {"result_dtype": "U8"}])
def test_impossible_files(request_: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match="use one of"):
        read_format(request_)


def test_the_file_that_a_client_wants() -> None:
    assert read_format({}) == MaskFormat() == MaskFormat(suffix=".nrrd", dtype="uint8", compress=True)
    wanted = {"result_extension": "NII.GZ", "result_dtype": "int16", "result_compress": "false"}
    assert read_format(wanted) == MaskFormat(suffix=".nii.gz", dtype="int16", compress=False)


def test_a_label_goes_by_its_known_name_and_is_answered_as_it_was_spelt() -> None:
    command = read(**{"label": "left kidney", "left kidney": [[1, 2, 3]]})
    assert (command.label, command.label_as_sent) == ("Left Kidney", "left kidney")
    assert command.options["Left Kidney"] == [[1, 2, 3]] and "left kidney" not in command.options
    assert read(for_label="liver").label == "liver"
    with pytest.raises(InvalidRequest, match="is selected"):
        read(label="liver", for_label="spleen")
    with pytest.raises(InvalidRequest, match="name of a label"):
        read(label=["liver"])


def test_only_masks_of_models_are_kept_by_models() -> None:
    assert read(save_label=True, label_tag="version_2").tag == "version_2"
    for tag in ("partial", "final"):
        with pytest.raises(InvalidRequest, match="person"):
            read(save_label=True, label_tag=tag)


def test_labels_by_name_and_by_number() -> None:
    offered = ("liver", "spleen", "aorta")
    assert FewShotCommand.of({**DEFAULTS, "labels": "liver, aorta"}, offered).labels == ("liver", "aorta")
    assert FewShotCommand.of({**DEFAULTS, "label_prompt": [3, 1]}, offered).labels == ("aorta", "liver")
    for wrong in ({"label_prompt": [4]}, {"label_prompt": "liver"}, {"labels": [1]}, {"budget_s": "long"}):
        with pytest.raises(InvalidRequest):
            FewShotCommand.of({**DEFAULTS, **wrong}, offered)
