"""When a service adapts again, and when the head that it has is good enough."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pocket_service import AFFINE, SHAPE, annotate, make_service
from safetensors.torch import save_file

from ssmsam.annotation.annotations import InvalidSubmission
from ssmsam.cache import Cache
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.config import FewShotConfig
from ssmsam.fewshot.pipeline import segment
from ssmsam.fewshot.task_checkpoint import UnusableCheckpoint
from ssmsam.service.fewshot_service import FewShotService
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume


@pytest.fixture
def service(tmp_path: Path) -> FewShotService:
    service = make_service(tmp_path)
    annotate(service, "a", {"liver": (3, 6)}, tmp_path)
    return service


def quick(service: FewShotService, *, steps: int = 1) -> FewShotConfig:
    adaptation = service.config.adaptation
    adaptation = replace(adaptation, steps=steps, views=replace(adaptation.views, views=0))
    return replace(service.config, adaptation=adaptation, folds=0)


def test_nothing_is_learned_twice_and_new_slices_are(service: FewShotService, tmp_path: Path) -> None:
    support = service.labelled.support("")
    head, name, fresh = service.task(support, quick(service))
    assert fresh
    assert (head.card["method"], head.card["start"]) == ("fewshot", "")
    assert service.task(support, quick(service))[1:] == (name, False)
    annotate(service, "a", {"liver": (4,)}, tmp_path)
    other, later, fresh = service.task(service.labelled.support(""), quick(service))
    assert fresh
    assert later > name
    assert len(other.card["support"]["liver"]) == 3


def test_an_image_that_was_replaced_teaches_nothing(service: FewShotService, tmp_path: Path) -> None:
    """Its masks lie on another grid: of another shape, or in another place."""
    annotate(service, "b", {"liver": (3, 6)}, tmp_path)
    file, moved = tmp_path / "studies" / "a.nii.gz", AFFINE.copy()
    moved[0, 3] += 9
    for shape, affine in (((6, 20, 24), AFFINE), (SHAPE, moved)):
        write_volume(Volume(np.random.default_rng(1).normal(60, 8, shape).astype(np.float32), affine), file)
        assert {one.image for one in service.labelled.support("b")["liver"]} == {"b"}
        with pytest.raises(InvalidSubmission, match="made on another image of this name"):
            service.labelled.support("a")
        assert not service.images.set_aside(), "it can be read, and what was drawn on it may come back"


def test_an_unadapted_head_is_no_answer_to_who_wants_it_adapted(service: FewShotService) -> None:
    support = service.labelled.support("")
    plain, name, _ = service.task(support, quick(service, steps=0))
    assert not plain.card["adapted"]
    assert service.task(support, quick(service, steps=0))[1:] == (name, False)
    adapted, _, fresh = service.task(support, quick(service))
    assert fresh
    assert adapted.card["adapted"]
    assert not service.task(support, quick(service, steps=0))[0].card["adapted"]


def test_a_pinned_head_answers_whatever_is_asked(service: FewShotService, tmp_path: Path) -> None:
    _, name, _ = service.task(service.labelled.support(""), quick(service))
    service.registry.activate(name, pin=True)
    annotate(service, "a", {"liver": (4,)}, tmp_path)
    assert service.task(service.labelled.support(""), quick(service, steps=0))[1:] == (name, False)


def test_labelled_volumes_are_completed_once_another_volume_needs_it(service: FewShotService) -> None:
    labelled, other = (service.images.open(service.images.from_datastore(name)).embeddings.key.digest for name in "ab")
    support = service.labelled.support("")
    head, name, _ = service.task(support, quick(service), volume=labelled)
    assert not head.pseudo_labelled
    again, same, fresh = service.task(support, quick(service), volume=other)
    assert (same, fresh) == (name, False)
    assert again.pseudo_labelled == ("liver",)
    assert again.banks["liver"].pseudo_labelled.any()
    kept = service.kept(name)
    assert kept is not None
    assert kept.pseudo_labelled == ("liver",), "it was not written down"
    assert not kept.lacks(other)


def test_an_exported_head_lacks_nothing(service: FewShotService) -> None:
    labelled = service.images.open(service.images.from_datastore("a")).embeddings.key.digest
    _, name, _ = service.task(service.labelled.support(""), quick(service), volume=labelled)
    assert not service.registry.card(name)["completed"]
    path = service.whole(name)
    assert service.registry.card(name)["completed"] == ["liver"]
    written = path.stat().st_mtime_ns
    assert service.whole(name).stat().st_mtime_ns == written


def same_masks(service: FewShotService, one: AdaptedTask, other: AdaptedTask) -> bool:
    queries = [service.images.open(service.images.from_datastore(name)).embeddings for name in "ab"]
    return all(np.array_equal(segment(query, one).logits, segment(query, other).logits) for query in queries)


def forgetful(service: FewShotService) -> FewShotService:
    """The same service after a restart."""
    return replace(service, _read=Cache(2))


def test_a_lost_support_cache_is_made_again_of_the_annotations(service: FewShotService) -> None:
    support = service.labelled.support("")
    head, name, _ = service.task(support, quick(service))
    checkpoint = service.registry.path(name).read_bytes()
    assert service.registry.cache.clear() > 0
    later = forgetful(service)
    again, same, fresh = later.task(support, quick(service))
    assert (same, fresh) == (name, False)
    assert not again.summarised
    assert same_masks(service, head, again)
    assert service.registry.path(name).read_bytes() == checkpoint
    loaded = service.registry.load(name, service.decoder, weights_sha256="pocket")
    assert not loaded.summarised, "it is in the cache again"


def test_without_the_slices_that_it_was_adapted_to_a_head_answers_from_its_summary(
    service: FewShotService, tmp_path: Path
) -> None:
    _, name, _ = service.task(service.labelled.support(""), quick(service))
    service.registry.activate(name, pin=True)
    service.registry.cache.clear()
    annotate(service, "a", {"spleen": (5,)}, tmp_path)
    later = forgetful(service)
    assert not later.task(service.labelled.support(""), quick(service))[0].summarised, "the liver is as it was"
    service.registry.cache.clear()
    (tmp_path / "studies" / "a.nii.gz").unlink()
    head, same, _ = forgetful(service).task({}, quick(service))
    assert (same, head.summarised) == (name, True)


def test_a_checkpoint_answers_in_another_room(service: FewShotService, tmp_path: Path) -> None:
    _, name, _ = service.task(service.labelled.support(""), quick(service))
    data = service.whole(name).read_bytes()
    assert len(data) < 4_000_000
    (tmp_path / "elsewhere").mkdir()
    other = make_service(tmp_path / "elsewhere", images=("c",))
    assert other.take(data, "imported") == "imported"
    other.registry.activate("imported", pin=True)
    head, used, _ = other.task({}, quick(other))
    assert (used, head.summarised, head.learned_from) == ("imported", True, {"liver": 2})
    assert segment(other.images.open(other.images.from_datastore("c")).embeddings, head).labels == ("liver",)
    assert other.whole("imported").read_bytes() == data


def test_files_of_earlier_versions_are_not_exported(service: FewShotService) -> None:
    service.registry.folder.mkdir()
    card = {"format": 5, "weights_sha256": "of another encoder", "encoder": "other"}
    save_file({"decoder.a": torch.zeros(1)}, service.registry.folder / "old.safetensors", {"card": json.dumps(card)})
    with pytest.raises(UnusableCheckpoint, match="holds copies of patients' images"):
        service.whole("old")
