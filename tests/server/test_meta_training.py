"""Learning a start from the labels of a server: what is published, what is not, and what heads make of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pocket_service import LABELS, PocketDecoder, annotate
from service_over_folder import make_service

from ssmsam.fewshot.checkpoint_registry import (
    SHIPPED,
    CheckpointRegistry,
    Initialisations,
    RegistryState,
    UnknownCheckpoint,
)
from ssmsam.fewshot.estimate import Estimate
from ssmsam.fewshot.meta_learning import hold_out, judged
from ssmsam.fewshot.support import NothingToLearn, Support
from ssmsam.models.fewshot_decoder import TargetDecoder
from ssmsam.models.registry import SSM_SAM
from ssmsam.models.self_sampling import SelfSamplingDecoder
from ssmsam.models.small_encoder import SPEC
from ssmsam.progress import Cancelled
from ssmsam.server.tasks import training as meta_training
from ssmsam.server.tasks.training import MetaTraining
from ssmsam.service.errors import InvalidRequest
from ssmsam.service.fewshot_service import FewShotService

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
def service(tmp_path: Path) -> FewShotService:
    """The liver annotated on five slices of both volumes."""
    plain = make_service(tmp_path)
    torch.manual_seed(1)
    decoder = SelfSamplingDecoder(PocketDecoder(), width=SPEC.channels).eval().requires_grad_(False)
    service = replace(
        plain,
        method=SSM_SAM,
        decoder=decoder,
        initialisations=Initialisations(tmp_path / "heads" / SSM_SAM / "starts", decoder, weights_sha256="pocket"),
        registry=CheckpointRegistry(tmp_path / "heads" / SSM_SAM, method=SSM_SAM),
    )
    for image in ("a", "b"):
        annotate(service, image, SLICES, tmp_path)
    return service


def the_starts(service: FewShotService) -> Initialisations:
    assert service.initialisations is not None
    return service.initialisations


def support_of(service: FewShotService) -> Support:
    return service.labelled.support("")


def same(one: TargetDecoder, other: TargetDecoder) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def quick_config(service: FewShotService):
    adaptation = replace(service.config.adaptation, steps=1, views=replace(service.config.adaptation.views, views=0))
    return replace(service.config, adaptation=adaptation, folds=0)


def accept_all(monkeypatch: pytest.MonkeyPatch, *, better: bool) -> None:
    """Estimates that say so: what a few steps with random weights are worth is a matter of chance."""
    after = iter((0.5, 0.6 if better else 0.4) * 9)
    monkeypatch.setattr(meta_training, "judged", lambda *_, **__: {"liver": Estimate(0.3, next(after), 2)})


def test_a_new_start_is_published_and_heads_are_adapted_from_it(service: FewShotService, monkeypatch) -> None:
    initialisations, config = the_starts(service), quick_config(service)
    old_head, old_name, _ = service.task(support_of(service), config)
    assert old_head.card["method"] == SSM_SAM
    assert old_head.card["start"] == ""
    accept_all(monkeypatch, better=True)
    task = MetaTraining(service)
    result = task({"model": "ssm_sam_meta", **QUICK}, service.studies)
    assert result["activated"]
    assert initialisations.state == RegistryState(result["start"], False, "")
    decoder, name = service.start
    assert name == result["start"]
    assert not same(decoder, service.decoder), "training changed nothing"
    assert same(
        Initialisations(Path(initialisations.folder), service.decoder, weights_sha256="pocket").current()[0], decoder
    )
    card = initialisations.cards()[name]
    assert card["learned_from"] == {"liver": 8}
    assert card["steps"] == 2
    assert card["shipped_estimate"]["liver"]["after"] == 0.5
    assert np.isfinite([card["first_loss"], card["loss"]]).all()

    head, new_name, fresh = service.task(support_of(service), config)
    assert fresh
    assert new_name != old_name
    assert head.card["start"] == name
    assert service.task(support_of(service), config)[1:] == (new_name, False), "nothing is learned twice"
    kept = service.kept(old_name)
    assert kept is not None
    assert same(kept.decoder, old_head.decoder), "a head keeps the decoder that it was adapted from"
    stats = task.stats()
    assert (stats["phase"], stats["start"], stats["best_metric"]) == ("done", name, 0.6)


def test_a_start_that_is_estimated_to_be_worse_is_kept_but_not_used(service: FewShotService, monkeypatch) -> None:
    accept_all(monkeypatch, better=False)
    result = MetaTraining(service)(QUICK, service.studies)
    assert not result["activated"]
    assert service.start == (service.decoder, "")
    assert list(the_starts(service).cards()) == [result["start"]]
    the_starts(service).activate(result["start"])
    assert service.start[1] == result["start"]


def test_going_back(service: FewShotService) -> None:
    initialisations = the_starts(service)
    first = initialisations.publish(service.decoder, CARD, activate=True)
    second = initialisations.publish(service.decoder, CARD, activate=True)
    assert initialisations.state == RegistryState(second, False, first)
    assert initialisations.roll_back().active == first
    assert initialisations.roll_back().active == second
    assert initialisations.activate(SHIPPED) == RegistryState("", False, second)
    assert service.start == (service.decoder, "")
    with pytest.raises(UnknownCheckpoint):
        initialisations.activate("nothing")


def test_starts_belong_to_the_weights_of_one_encoder(service: FewShotService, tmp_path: Path) -> None:
    initialisations = the_starts(service)
    initialisations.publish(service.decoder, CARD, activate=True)
    others = Initialisations(initialisations.folder, service.decoder, weights_sha256="other")
    assert others.current() == (service.decoder, "")
    assert others.cards() == {}


def test_a_damaged_start_is_not_used(service: FewShotService) -> None:
    initialisations = the_starts(service)
    name = initialisations.publish(service.decoder, CARD, activate=True)
    next(initialisations.folder.rglob(f"{name}.safetensors")).write_bytes(b"damaged")
    assert Initialisations(initialisations.folder, service.decoder, weights_sha256="pocket").current() == (
        service.decoder,
        "",
    )


def test_stopping_leaves_the_start_that_was_used(service: FewShotService, monkeypatch) -> None:
    task, heard = MetaTraining(service), []

    def progress(phase: str, done: int, total: int) -> None:
        heard.append(phase)
        if phase == "meta" and done == 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        task.train({**task.config(), **QUICK}, progress)
    assert "estimate" in heard
    assert service.start == (service.decoder, "")
    assert the_starts(service).cards() == {}


def test_the_estimate_rests_on_slices_that_training_never_saw(service: FewShotService, monkeypatch) -> None:
    support = support_of(service)
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
    MetaTraining(service)(QUICK, service.studies)
    assert hidden.isdisjoint((one.volume, one.index) for one in shown[0]["liver"])


def test_what_is_set_aside_decides_the_estimate(service: FewShotService) -> None:
    """Other masks on these slices change the Dice; it is not one of the slices that are shown."""
    config = replace(service.config.adaptation, steps=0)
    support = support_of(service)
    _, aside = hold_out(support)
    before = judged(service.decoder, support, aside, service.embedder, config=config)["liver"]
    slices = sorted(support["liver"], key=lambda one: (one.volume, one.index))
    for number in aside["liver"]:
        slices[number] = replace(slices[number], mask=np.ones_like(slices[number].mask))
    other = judged(service.decoder, {"liver": slices}, aside, service.embedder, config=config)["liver"]
    assert before.slices == other.slices == len(aside["liver"])
    assert before.before != other.before


def test_too_little_is_refused_before_a_process_starts(tmp_path: Path, service: FewShotService) -> None:
    task = MetaTraining(service)
    task.require({})
    (tmp_path / "other").mkdir()
    bare = make_service(tmp_path / "other")
    annotate(bare, "a", {LABELS[0]: (2, 3, 5, 6), LABELS[1]: (4, 5, 6)}, tmp_path)
    with pytest.raises(NothingToLearn, match=r"at least 2 tasks.* 4 or more annotated slices.* there are 1"):
        MetaTraining(bare).require({})


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": "many"}, {"outer_rate": 2}, {"views": -1}])
def test_wrong_options_are_refused(service: FewShotService, wrong: dict) -> None:
    with pytest.raises(InvalidRequest):
        MetaTraining(service).require(wrong)
