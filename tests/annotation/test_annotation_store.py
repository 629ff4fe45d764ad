"""On disk: everything comes back, damage is noticed, and two processes may submit at once."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from submissions import AFFINE, GRID, drawn, empty, submission, updates

from ssmsam.annotation.annotations import InvalidSubmission, Source, SupportSet, Update
from ssmsam.annotation.interpretation import Context, interpret
from ssmsam.annotation.log import Assignment, Served, WorkLog
from ssmsam.annotation.store import AnnotationStore, image_folder, read_masks
from ssmsam.volume.volume import Grid

HOSTILE = "../../case: é/07"


@settings(max_examples=20)
@given(st.lists(updates(), min_size=1, max_size=3))
def test_round_trip(submitted: list[Update]) -> None:
    with tempfile.TemporaryDirectory() as root:
        store, known = AnnotationStore(Path(root)), empty()
        for update in submitted:
            known = known.merge(update)
            stored = store.merge(HOSTILE, update)
        loaded = AnnotationStore(Path(root)).load(HOSTILE)
        if not known.revisions:
            assert loaded is None
            return
        assert loaded is not None and loaded.grid.matches(GRID)
        for one in (stored, loaded):
            assert [vars(r) | {"grid": 0} for r in one.revisions] == [vars(r) | {"grid": 0} for r in known.revisions]
        assert store.images() == [HOSTILE]


def merged(root: Path, *slices: int) -> AnnotationStore:
    store = AnnotationStore(root)
    for index in slices:
        store.merge("case", interpret(submission(drawn(index)), Context(empty())))
    return store


def test_other_grids_are_refused_and_nothing_changes(tmp_path) -> None:
    store = merged(tmp_path, 2)
    before = sorted(path.read_bytes() for path in tmp_path.rglob("*.*"))
    with pytest.raises(InvalidSubmission, match="another grid"):
        store.merge("case", Update(Grid(GRID.shape, AFFINE * 2)))
    assert sorted(path.read_bytes() for path in tmp_path.rglob("*.*")) == before
    assert store.load("other") is None


def test_a_crash_between_two_files_costs_nothing(tmp_path) -> None:
    store = merged(tmp_path, 2)
    (image_folder(tmp_path, "case") / "revision-000002.npz").write_bytes(b"half")
    assert set(merged(tmp_path, 5).load("case").annotated("liver")) == {2, 5}
    assert store.load("case").revision == 2


_SUBMIT = """
import sys
from pathlib import Path
from ssmsam.annotation.interpretation import Context, interpret
from ssmsam.annotation.store import AnnotationStore
from submissions import drawn, empty, submission
for index in map(int, sys.argv[2:]):
    AnnotationStore(Path(sys.argv[1])).merge("case", interpret(submission(drawn(index)), Context(empty())))
"""


def test_two_processes_submit_at_once(tmp_path) -> None:
    batches = [["0", "2", "4", "6"], ["1", "3", "5", "7"]]
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen([sys.executable, "-c", _SUBMIT, str(tmp_path), *batch], env=environment) for batch in batches
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    known = AnnotationStore(tmp_path).load("case")
    assert known.revision == 8 and set(known.annotated("liver")) == set(range(8))


def test_the_servers_records_come_back(tmp_path) -> None:
    log = WorkLog(tmp_path)
    task = Assignment("a1", HOSTILE, (1, 2), labels=("liver",), client="reader", when="2026-01-02")
    log.assign(task)

    first = Served.of(drawn(2) > 0, label="liver", client="reader", only=[2], prompted=[2])
    log.serve(HOSTILE, first)
    log.serve(HOSTILE, Served.of(drawn(4) > 0, label="liver", client="reader", only=[4]))
    log.serve(HOSTILE, Served.of(drawn(5) > 0, label="liver", client="other"))
    again = WorkLog(tmp_path)
    assert again.assignments(HOSTILE) == [task] and again.assignments("case") == []

    own = again.served(HOSTILE, client="reader")["liver"]
    assert set(own.slices) == {2, 4} and own.prompted == {2}
    assert np.array_equal(own.slices[2].array, drawn(2)[2] > 0)
    assert again.served(HOSTILE, client="nobody")["liver"].client == "other"
    assert len(list(tmp_path.rglob("served-*.npz"))) == 2


def test_support_set(tmp_path) -> None:
    store = merged(tmp_path, 2, 5)
    array = drawn(3, value=2, array=drawn(1))
    partial = {"slices": {"spleen": {"annotated": [3], "empty": [6]}}}
    store.merge("b", interpret(submission(array, ("liver", "spleen"), partial=partial), Context(empty())))
    support = store.support()
    assert [(s.image, s.label, s.index) for s in support] == [
        ("b", "spleen", 3),
        ("b", "spleen", 6),
        ("case", "liver", 2),
        ("case", "liver", 5),
    ]
    assert (support.labels, support.images) == (("liver", "spleen"), ("b", "case"))
    assert [s.index for s in support.only(label="spleen", nonempty=True)] == [3]
    assert [s.annotation.source for s in support].count(Source.NONEMPTY) == 2 and len(support.only(images=["b"])) == 2
    assert np.array_equal(next(iter(support)).mask, array[3] == 2) and next(iter(support)).annotation.weight.all()
    assert len(SupportSet()) == 0


def test_masks_are_read_again_only_where_something_was_submitted(tmp_path, monkeypatch) -> None:
    read: list[str] = []

    def noted(path: Path, *rest, **options):
        read.append(path.name)
        return read_masks(path, *rest, **options)

    monkeypatch.setattr("ssmsam.annotation.store.read_masks", noted)
    store = merged(tmp_path, 2, 3, 4)
    for image in ("case", "other"):
        store.merge(image, interpret(submission(drawn(5)), Context(empty())))
    assert len(store.support()) == 5
    read.clear()
    store.merge("case", interpret(submission(drawn(1)), Context(empty())))
    assert [one.index for one in store.support().only(images=["case"])] == [1, 2, 3, 4, 5]
    assert len(store.support()) == 6 and read == ["revision-000005.npz"]
    file = image_folder(tmp_path, "other") / "revision-000001.npz"
    file.write_bytes(b"damaged")
    assert not store.load("other").slices


def test_one_look_does_for_a_whole_answer(tmp_path) -> None:
    store = merged(tmp_path, 2)
    with store.one_look():
        before = store.overviews()
        merged(tmp_path, 3)
        assert store.overviews() is before and before["case"].revision == 1
    assert store.overview("case").revision == 2
