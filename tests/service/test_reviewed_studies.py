"""From a finished volume to one that a second person accepted, or sent back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pocket_service import annotate, make_service

from ssmsam.annotation.annotations import InvalidSubmission, SliceKey
from ssmsam.annotation.log import ReviewVerdict
from ssmsam.service.errors import InvalidRequest, NotNow, NotYours
from ssmsam.service.fewshot_service import FewShotService
from ssmsam.service.jobs import act_for
from ssmsam.service.study_list import study_list

ACCEPT, SEND_BACK = ReviewVerdict.ACCEPT, ReviewVerdict.SEND_BACK


@pytest.fixture
def service(tmp_path: Path) -> FewShotService:
    return make_service(tmp_path)


@pytest.fixture
def logged_in() -> Iterator[None]:
    yield
    act_for("")


def state(service: FewShotService, image: str = "a") -> str:
    return service.studies.states()[image]


def test_a_volume_goes_from_hand_to_hand(service: FewShotService, tmp_path: Path) -> None:
    studies = service.studies
    assert state(service) == "new"
    annotate(service, "a", {"liver": [3, 4]}, tmp_path)
    assert state(service) == "in work"
    with pytest.raises(NotNow, match="a is in work"):
        studies.review("a", ACCEPT, client="second")
    annotate(service, "a", {"liver": [3, 4]}, tmp_path, complete=True)
    assert state(service) == "to review"
    with pytest.raises(InvalidRequest, match="note"):
        studies.review("a", SEND_BACK, client="second")
    studies.review("a", SEND_BACK, note="the top is missing", client="second")
    assert state(service) == "in work"
    assert studies.annotations("a").slices.keys(), "what was checked one by one still counts"
    annotate(service, "a", {"liver": [3, 4, 5]}, tmp_path, complete=True)
    assert state(service) == "to review"
    given = studies.review("a", ACCEPT, client="second")
    assert state(service) == "finished"
    with pytest.raises(NotNow, match="a is finished"):
        studies.review("a", ACCEPT, client="third")
    studies._written()
    row = next(one for one in study_list(studies, service.images) if one.image == "a")
    assert (row.state, row.work.review) == ("finished", given)
    assert [who for who, one in row.work.workers.items() if one.annotated] == ["reader"]
    annotate(service, "a", {"liver": [6]}, tmp_path, complete=True)
    assert state(service) == "to review", "another revision was accepted"


def test_a_lost_record_of_the_work_accepts_nothing(service: FewShotService, tmp_path: Path) -> None:
    annotate(service, "a", {"liver": [3, 4]}, tmp_path, complete=True)
    assert state(service) == "to review"
    for lost in tmp_path.rglob("work.json"):
        lost.unlink()
    assert state(service) == "to review"


def test_with_logins_nobody_reviews_their_own_work(service: FewShotService, tmp_path: Path, logged_in: None) -> None:
    act_for("anna")
    annotate(service, "a", {"liver": [3, 4]}, tmp_path, complete=True)
    with pytest.raises(NotYours, match="a second person"):
        service.studies.review("a", ACCEPT, client="another name")
    act_for("bert")
    assert service.studies.review("a", ACCEPT, client="reader").who == "bert"


def test_what_is_expected_is_kept(service: FewShotService, tmp_path: Path) -> None:
    service.studies.expect("a", {"liver": 0.87})
    service.studies._written()
    again = [one.work.expected for one in study_list(service.studies, service.images)]
    assert again == [{"liver": 0.87}, {}]


def test_a_slice_alone_counts_and_leaves_all_others(service: FewShotService, tmp_path: Path) -> None:
    studies = service.studies
    annotate(service, "a", {"liver": [3]}, tmp_path)
    drawn = np.zeros((40, 48), bool)
    drawn[10:20, 10:20] = True
    receipt = studies.submit_slice("a", SliceKey("Liver", 0, 5), drawn, client="reader")
    assert receipt.answer()["counted"] == ["counted as annotated: 5 (liver)"], "under the name that is known"
    studies.submit_slice("a", SliceKey("liver", 0, 9), np.zeros_like(drawn), client="reader")
    known = studies.annotations("a").annotated("liver")
    assert sorted(known) == [3, 5, 9] and known[9].empty
    assert np.array_equal(studies.screen("a", client="reader")["liver"][5], drawn)
    with pytest.raises(InvalidSubmission, match="slice"):
        studies.submit_slice("a", SliceKey("liver", 0, 10), drawn, client="reader")
    studies.undo("a", client="reader")
    assert sorted(studies.annotations("a").annotated("liver")) == [3, 5]
