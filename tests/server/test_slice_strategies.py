"""Next samples that name slices, on a real datastore, with an untrained model."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pocket_service import LABELS, SHAPE, annotate, embed
from service_over_folder import make_service

from ssmsam.active.acquisition import RULES
from ssmsam.active.forecast import prompted
from ssmsam.reading import read_volume
from ssmsam.server.clients.rest import InferenceCommand, NextSampleCommand
from ssmsam.server.tasks.fewshot import UncertaintyMap
from ssmsam.server.tasks.strategies import (
    EXHAUSTED,
    FINISHED,
    UNREADABLE,
    SliceStrategy,
    slices_hint,
)
from ssmsam.service.errors import InvalidRequest, NotKnown
from ssmsam.service.fewshot_service import FewShotService
from ssmsam.service.mask_files import MaskFormat
from ssmsam.service.volume_forecasts import Deadline, VolumeForecasts
from ssmsam.volume.errors import UnreadableVolume

EVERY = range(SHAPE[0])


@pytest.fixture
def service(tmp_path: Path) -> FewShotService:
    return make_service(tmp_path)


def ask(service: FewShotService, rule: str = "next_slices", **request: object) -> dict:
    strategy = SliceStrategy(VolumeForecasts(service), rule=rule)
    found = strategy({"strategy": rule, **request}, service.studies)
    assert json.loads(json.dumps(found)) == found
    return found


@pytest.mark.parametrize("rule", RULES)
def test_before_anything_is_annotated(service: FewShotService, rule: str) -> None:
    found = ask(service, rule)
    assert found["id"] in ("a", "b")
    assert len(found["slices"]) == 3 and set(found["slices"]) <= set(EVERY)
    assert found["axis"] == 2 and found["labels"] == [] and found["slices_by_label"] == {}
    assert found["PatientID"] == f"{found['id']} | slices {','.join(map(str, found['slices']))}"
    assert len(found["why"]) == 3 and all(sentence.startswith("slice ") for sentence in found["why"])


@pytest.mark.parametrize("rule", RULES)
def test_with_annotations_other_slices_are_named_for_each_label(
    service: FewShotService, tmp_path: Path, rule: str
) -> None:
    annotate(service, "a", {"liver": [3, 6], "spleen": [5]}, tmp_path)
    embed(service, "a")
    found = ask(service, rule, k=4, image="a")
    assert found["id"] == "a" and set(found["labels"]) <= set(LABELS)
    assert not set(found["slices_by_label"].get("liver", ())) & {3, 6}
    assert not set(found["slices_by_label"].get("spleen", ())) & {5}
    union = {index for slices in found["slices_by_label"].values() for index in slices}
    assert union == set(found["slices"]) and len(union) == 4
    assert {(one["slice"], one["label"]) for one in found["reasons"]} == {
        (index, label) for label, slices in found["slices_by_label"].items() for index in slices
    }


def test_a_choice_on_embedded_volumes_costs_no_encoder_pass(service: FewShotService, tmp_path: Path) -> None:
    annotate(service, "a", {"liver": [3, 6]}, tmp_path)
    embed(service, "a", "b")
    encoded = service.embedder.encoded
    for rule in RULES:
        assert ask(service, rule)["id"]
    annotate(service, "a", {"liver": [4]}, tmp_path)
    assert ask(service)["id"]
    assert service.embedder.encoded == encoded


def test_forecasts_are_made_anew_only_when_something_has_changed(service: FewShotService, tmp_path: Path) -> None:
    annotate(service, "a", {"liver": [3, 6]}, tmp_path)
    embed(service, "a")
    forecasts = VolumeForecasts(service)
    first = forecasts.of("a", ["liver"], deadline=Deadline(10)).state.forecasts["liver"]
    assert forecasts.of("a", ["liver"], deadline=Deadline(10)).state.forecasts["liver"] is first
    annotate(service, "a", {"liver": [4]}, tmp_path)
    after = forecasts.of("a", ["liver"], deadline=Deadline(10)).state.forecasts["liver"]
    assert after is not first
    support = service.labelled.support("a")
    name = service.registry.publish(prompted(support, service.embedder, service.decoder), decoder=service.decoder)
    asked = forecasts.of("a", ["liver"], deadline=Deadline(10))
    assert asked.checkpoint == name and asked.state.forecasts["liver"] is not after


def test_a_checkpoint_of_these_very_slices_is_asked_as_it_is(service: FewShotService, tmp_path: Path) -> None:
    annotate(service, "a", {"liver": [3, 6]}, tmp_path)
    forecasts, support = VolumeForecasts(service), service.labelled.support("a")
    name = service.registry.publish(prompted(support, service.embedder, service.decoder), decoder=service.decoder)
    kept = service.kept(name)
    assert kept is not None
    task, asked = forecasts.task("a", ["liver"])
    assert asked == name and task.banks["liver"] is kept.banks["liver"]
    annotate(service, "a", {"liver": [4]}, tmp_path)
    task, _ = forecasts.task("a", ["liver"])
    assert len(task.banks["liver"]) == 3
    assert forecasts.task("b", ["liver"])[0] is task  # the same slices tell the next image


def test_a_choice_does_not_wait_for_the_work_of_others_beyond_its_budget(
    service: FewShotService, tmp_path: Path
) -> None:
    annotate(service, "a", {"liver": [3, 6]}, tmp_path)
    embed(service, "a")
    with ThreadPoolExecutor(1) as pool:
        with service.jobs.turns.long():
            found = pool.submit(ask, service, image="a", budget_s=0.3).result(timeout=30)
            assert len(found["slices"]) == 3 and not set(found["slices"]) & {3, 6}
            assert all("looks least like" in one["why"] for one in found["reasons"])
        found = pool.submit(ask, service, image="a", budget_s=30).result(timeout=60)
        assert not all("looks least like" in one["why"] for one in found["reasons"])


def test_volumes_are_compared_where_a_model_can_tell(service: FewShotService, tmp_path: Path) -> None:
    annotate(service, "a", {"liver": [index for index in EVERY if index != 5]}, tmp_path)
    embed(service, "a", "b")
    assert ask(service)["id"] == "b"  # one slice is left in a, all of them in b
    assert ask(service, image="a")["slices"] == [5]


def test_nothing_left_is_said(service: FewShotService, tmp_path: Path) -> None:
    for image in ("a", "b"):
        annotate(service, image, {"liver": EVERY}, tmp_path)
    for rule in RULES:
        assert ask(service, rule) == {"message": EXHAUSTED}
        assert ask(service, rule, labels="spleen")["labels"] == ["spleen"]
    for image in ("a", "b"):
        annotate(service, image, {"liver": EVERY}, tmp_path, complete=True)
    for rule in RULES:
        assert ask(service, rule) == {"message": FINISHED}
    with pytest.raises(InvalidRequest, match="a is finished"):
        ask(service, image="a")


def test_an_image_that_cannot_be_read_holds_nobody_up(service: FewShotService) -> None:
    Path(service.images.from_datastore("a").path).write_bytes(b"damaged")
    assert ask(service)["id"] == "b"


@pytest.mark.parametrize("request_", [{"k": "many"}, {"k": -1}, {"k": 1000}, {"budget_s": 1e9}, {"labels": [1]}])
def test_wrong_wishes_are_refused(service: FewShotService, request_: dict) -> None:
    with pytest.raises(InvalidRequest):
        ask(service, **request_)


def test_an_unknown_image_is_refused(service: FewShotService) -> None:
    with pytest.raises(NotKnown):
        ask(service, image="nowhere")


def test_what_viewers_send_as_an_option_means_all_annotated_labels() -> None:
    assert NextSampleCommand.of({"for_label": "all annotated", "k": 3}).labels == ()
    assert NextSampleCommand.of({"for_label": "liver"}).labels == ("liver",)
    assert NextSampleCommand.of({"labels": "liver, spleen,liver"}).labels == ("liver", "spleen")


def test_options_have_types_that_viewers_can_show(service: FewShotService) -> None:
    for rule in RULES:
        config = SliceStrategy(VolumeForecasts(service), rule=rule).info()["config"]
        for value in config.values():
            assert isinstance(value, bool | int | float | str) or all(isinstance(one, str) for one in value)


def test_the_hint_is_short_and_says_which_label_wants_what() -> None:
    assert slices_hint([1, 5], {}) == "slices 1,5"
    assert slices_hint([1, 5], {"liver": [1, 5]}) == "slices 1,5"
    assert slices_hint([1, 5], {"liver": [1, 5], "spleen": [5]}) == "liver 1,5; spleen 5"


def test_a_pinned_head_is_asked_as_it_is(service: FewShotService, tmp_path: Path) -> None:
    annotate(service, "a", {"liver": [3]}, tmp_path)
    name = service.registry.publish(
        prompted(service.labelled.support("a"), service.embedder, service.decoder), decoder=service.decoder
    )
    service.registry.activate(name, pin=True)
    annotate(service, "a", {"liver": [4, 5]}, tmp_path)
    head, used = VolumeForecasts(service).task("a", ["liver"])
    assert used == name and len(head.banks["liver"]) == 1
    service.registry.unpin()
    assert len(VolumeForecasts(service).task("a", ["liver"])[0].banks["liver"]) == 3


def test_the_map_is_on_the_image_s_grid_and_sure_where_somebody_looked(service: FewShotService, tmp_path: Path) -> None:
    task = UncertaintyMap(service)
    source = service.images.from_datastore("a")
    with pytest.raises(InvalidRequest, match="annotate a few slices"):
        task(InferenceCommand(image=source))
    annotate(service, "a", {"liver": [3, 6]}, tmp_path)
    path, details = task(InferenceCommand(image=source, format=MaskFormat(suffix=".nii.gz")))
    unsure, image = read_volume(path), read_volume(source.path)
    assert unsure.grid.matches(image.grid) and details["labels"] == ["liver"]
    assert unsure.array.min() >= 0 and unsure.array.max() <= 100
    assert not unsure.array[[3, 6]].any()
    assert all(unsure.array[index].any() for index in EVERY if index not in (3, 6))
    assert details["mean"] == pytest.approx(float(np.mean(unsure.array)), abs=0.01)
    elsewhere, _ = task(InferenceCommand(image=service.images.from_datastore("b")))
    assert all(read_volume(elsewhere).array[index].any() for index in EVERY)
    with pytest.raises(InvalidRequest, match="spleen"):
        task(InferenceCommand(image=source, label="spleen"))


@pytest.mark.parametrize("rule", RULES)
def test_an_image_that_cannot_be_read_stops_nobody(tmp_path: Path, rule: str) -> None:
    service = make_service(tmp_path, images=[f"bad{n}" for n in range(9)] + ["good"])
    for path in (tmp_path / "studies").glob("bad*"):
        path.write_bytes(path.read_bytes()[:500])
    for _ in range(2):
        assert ask(service, rule)["id"] == "good"
    with pytest.raises(UnreadableVolume, match="bad3"):
        ask(service, rule, image="bad3")
    (tmp_path / "studies" / "good.nii.gz").write_bytes(b"")
    assert ask(service, rule) == {"message": UNREADABLE.format(10)}
    told = {one["image"]: one["reason"] for one in service.images.set_aside()}
    assert len(told) == 10 and all(image in reason for image, reason in told.items())


def test_annotations_of_an_image_that_cannot_be_read_any_more_stop_nobody(
    service: FewShotService, tmp_path: Path
) -> None:
    annotate(service, "a", {"liver": [3, 6]}, tmp_path)
    annotate(service, "b", {"liver": [4], "spleen": [5]}, tmp_path)
    (tmp_path / "studies" / "b.nii.gz").write_bytes(b"")
    assert ask(service)["id"] == "a"
    assert set(service.labelled.support("a")) == {"liver"}
    with pytest.raises(InvalidRequest, match="spleen cannot be read"):
        service.labelled.support("a", labels=["spleen"])
    with pytest.raises(UnreadableVolume):
        service.labelled.support("b")
