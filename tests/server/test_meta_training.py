"""Learning a start from the labels of a server: what is published, what is not, and what heads make of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pocket_room import LABELS, PocketDecoder, annotate, make_room

from ssmsam.fewshot.checkpoint_registry import CheckpointRegistry, RegistryState, UnknownCheckpoint
from ssmsam.fewshot.estimate import Estimate
from ssmsam.fewshot.initialisations import SHIPPED, SSM_SAM, Initialisations
from ssmsam.fewshot.meta_learning import hold_out, judged
from ssmsam.fewshot.support import NothingToLearn, Support
from ssmsam.models.fewshot_decoder import TargetDecoder
from ssmsam.models.self_sampling import SelfSamplingDecoder
from ssmsam.models.small_encoder import SPEC
from ssmsam.progress import Cancelled
from ssmsam.server.errors import InvalidRequest
from ssmsam.server.fewshot_room import FewShotService
from ssmsam.server.tasks import training as meta_training
from ssmsam.server.tasks.training import MetaTraining

QUICK = {"steps": 2, "inner_steps": 1, "views": 0, "estimate_steps": 1, "outer_rate": 1e-3}
SLICES = {"liver": (2, 3, 5, 6, 7)}

CARD = {"encoder": "pocket", "created": "2026-01-01T00:00:00+00:00", "dice_estimate": {}}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def room(tmp_path: Path) -> FewShotService:
    """The liver annotated on five slices of both volumes."""
    plain = make_room(tmp_path)
    torch.manual_seed(1)
    decoder = SelfSamplingDecoder(PocketDecoder(), width=SPEC.channels).eval().requires_grad_(False)
    room = replace(
        plain,
        method=SSM_SAM,
        decoder=decoder,
        starts=Initialisations(tmp_path / "heads" / SSM_SAM / "starts", decoder, weights_sha256="pocket"),
        shelf=CheckpointRegistry(tmp_path / "heads" / SSM_SAM, method=SSM_SAM),
    )
    for image in ("a", "b"):
        annotate(room, image, SLICES, tmp_path)
    return room


def the_starts(room: FewShotService) -> Initialisations:
    assert room.starts is not None
    return room.starts


def support_of(room: FewShotService) -> Support:
    return room.labelled.support("")


def same(one: TargetDecoder, other: TargetDecoder) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def quick_config(room: FewShotService):
    adaptation = replace(room.config.adaptation, steps=1, views=replace(room.config.adaptation.views, views=0))
    return replace(room.config, adaptation=adaptation, folds=0)


def accept_all(monkeypatch: pytest.MonkeyPatch, *, better: bool) -> None:
    """Estimates that say so: what a few steps with random weights are worth is a matter of chance."""
    after = iter((0.5, 0.6 if better else 0.4) * 9)
    monkeypatch.setattr(meta_training, "judged", lambda *_, **__: {"liver": Estimate(0.3, next(after), 2)})


def test_a_new_start_is_published_and_heads_are_adapted_from_it(room: FewShotService, monkeypatch) -> None:
    starts, config = the_starts(room), quick_config(room)
    old_head, old_name, _ = room.head(support_of(room), config)
    assert old_head.card["method"] == SSM_SAM
    assert old_head.card["start"] == ""
    accept_all(monkeypatch, better=True)
    task = MetaTraining(room)
    result = task({"model": "ssm_sam_meta", **QUICK}, room.datastore)
    assert result["activated"]
    assert starts.state == RegistryState(result["start"], False, "")
    decoder, name = room.start
    assert name == result["start"]
    assert not same(decoder, room.decoder), "training changed nothing"
    assert same(Initialisations(Path(starts.folder), room.decoder, weights_sha256="pocket").current()[0], decoder)
    card = starts.cards()[name]
    assert card["learned_from"] == {"liver": 8}
    assert card["steps"] == 2
    assert card["shipped_estimate"]["liver"]["after"] == 0.5
    assert np.isfinite([card["first_loss"], card["loss"]]).all()

    head, new_name, fresh = room.head(support_of(room), config)
    assert fresh
    assert new_name != old_name
    assert head.card["start"] == name
    assert room.head(support_of(room), config)[1:] == (new_name, False), "nothing is learned twice"
    kept = room.kept(old_name)
    assert kept is not None
    assert same(kept.decoder, old_head.decoder), "a head keeps the decoder that it was adapted from"
    stats = task.stats()
    assert (stats["phase"], stats["start"], stats["best_metric"]) == ("done", name, 0.6)


def test_a_start_that_is_estimated_to_be_worse_is_kept_but_not_used(room: FewShotService, monkeypatch) -> None:
    accept_all(monkeypatch, better=False)
    result = MetaTraining(room)(QUICK, room.datastore)
    assert not result["activated"]
    assert room.start == (room.decoder, "")
    assert list(the_starts(room).cards()) == [result["start"]]
    the_starts(room).activate(result["start"])
    assert room.start[1] == result["start"]


def test_going_back(room: FewShotService) -> None:
    starts = the_starts(room)
    first = starts.publish(room.decoder, CARD, activate=True)
    second = starts.publish(room.decoder, CARD, activate=True)
    assert starts.state == RegistryState(second, False, first)
    assert starts.roll_back().active == first
    assert starts.roll_back().active == second
    assert starts.activate(SHIPPED) == RegistryState("", False, second)
    assert room.start == (room.decoder, "")
    with pytest.raises(UnknownCheckpoint):
        starts.activate("nothing")


def test_starts_belong_to_the_weights_of_one_encoder(room: FewShotService, tmp_path: Path) -> None:
    starts = the_starts(room)
    starts.publish(room.decoder, CARD, activate=True)
    others = Initialisations(starts.folder, room.decoder, weights_sha256="other")
    assert others.current() == (room.decoder, "")
    assert others.cards() == {}


def test_a_damaged_start_is_not_used(room: FewShotService) -> None:
    starts = the_starts(room)
    name = starts.publish(room.decoder, CARD, activate=True)
    next(starts.folder.rglob(f"{name}.safetensors")).write_bytes(b"damaged")
    assert Initialisations(starts.folder, room.decoder, weights_sha256="pocket").current() == (room.decoder, "")


def test_stopping_leaves_the_start_that_was_used(room: FewShotService, monkeypatch) -> None:
    task, heard = MetaTraining(room), []

    def progress(phase: str, done: int, total: int) -> None:
        heard.append(phase)
        if phase == "meta" and done == 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        task.train({**task.config(), **QUICK}, progress)
    assert "estimate" in heard
    assert room.start == (room.decoder, "")
    assert the_starts(room).cards() == {}


def test_the_estimate_rests_on_slices_that_training_never_saw(room: FewShotService, monkeypatch) -> None:
    support = support_of(room)
    rest, aside = hold_out(support)
    assert len(support["liver"]) == 10
    assert len(aside["liver"]) == 2
    slices = sorted(support["liver"], key=lambda one: (one.volume, one.index))
    hidden = {(slices[n].volume, slices[n].index) for n in aside["liver"]}
    assert hidden.isdisjoint((one.volume, one.index) for one in rest["liver"])
    assert len({volume for volume, _ in hidden}) == 2

    shown: list[Support] = []
    real = meta_training.meta_train
    monkeypatch.setattr(meta_training, "meta_train", lambda given, *a, **k: shown.append(given) or real(given, *a, **k))
    MetaTraining(room)(QUICK, room.datastore)
    assert hidden.isdisjoint((one.volume, one.index) for one in shown[0]["liver"])


def test_what_is_set_aside_decides_the_estimate(room: FewShotService) -> None:
    """Other masks on these slices change the Dice; it is not one of the slices that are shown."""
    config = replace(room.config.adaptation, steps=0)
    support = support_of(room)
    _, aside = hold_out(support)
    before = judged(room.decoder, support, aside, room.embedder, config=config)["liver"]
    slices = sorted(support["liver"], key=lambda one: (one.volume, one.index))
    for number in aside["liver"]:
        slices[number] = replace(slices[number], mask=np.ones_like(slices[number].mask))
    other = judged(room.decoder, {"liver": slices}, aside, room.embedder, config=config)["liver"]
    assert before.slices == other.slices == len(aside["liver"])
    assert before.before != other.before


def test_too_little_is_refused_before_a_process_starts(tmp_path: Path, room: FewShotService) -> None:
    task = MetaTraining(room)
    task.require({})
    (tmp_path / "other").mkdir()
    bare = make_room(tmp_path / "other")
    annotate(bare, "a", {LABELS[0]: (2, 3, 5, 6), LABELS[1]: (4, 5, 6)}, tmp_path)
    with pytest.raises(NothingToLearn, match=r"at least 2 tasks.* 4 or more annotated slices.* there are 1"):
        MetaTraining(bare).require({})


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": "many"}, {"outer_rate": 2}, {"views": -1}])
def test_wrong_options_are_refused(room: FewShotService, wrong: dict) -> None:
    with pytest.raises(InvalidRequest):
        MetaTraining(room).require(wrong)
