"""The DICOMweb datastore against a store that misbehaves on demand."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import requests
from archive import Archive
from multi_frame import multi_frame
from planted_seg import plant_seg
from pydicom.filebase import DicomBytesIO

from ssmsam.annotation.annotations import InvalidSubmission
from ssmsam.dicom import web as dicom_web
from ssmsam.dicom.series_writer import DicomPatient, write_dicom_series
from ssmsam.dicom.web import (
    DicomStore,
    SeriesRefused,
    SeriesUnavailable,
    StoreAccess,
    StoreRefused,
    StoreUnavailable,
)
from ssmsam.reading import UnreadableVolume, read_volume
from ssmsam.server.datastore import catalogue as dicom_catalogue
from ssmsam.server.datastore.dicomweb import UNSENT, DicomWebArchive
from ssmsam.server.datastore.studies import DicomWebStudies
from ssmsam.service import annotated_studies
from ssmsam.service.errors import InvalidRequest, NotKnown
from ssmsam.volume.volume import Volume, reoriented
from ssmsam.volume.writing import write_volume

SHAPE = (5, 12, 10)
PATIENT = "SECRET-4711"
NAMES = [{"name": "liver", "idx": 1}, {"name": "Läsion 肿瘤", "idx": 2}]

Open = Callable[..., DicomWebArchive]


@pytest.fixture
def archive() -> Iterator[Archive]:
    running = Archive()
    yield running
    running.close()


@pytest.fixture
def open_studies(archive: Archive, tmp_path: Path) -> Open:
    def open_studies(
        *, quota_bytes: int = 10**9, fresh_s: float = 0.0, filters: dict[str, Any] | None = None, **access: Any
    ) -> DicomWebArchive:
        store = DicomStore(StoreAccess(url=archive.url, retries=0, **access))
        return DicomWebArchive(
            store,
            folder=tmp_path / "local",
            filters=filters or {"Modality": ["CT", "MR"]},
            quota_bytes=quota_bytes,
            fresh_s=fresh_s,
        )

    return open_studies


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for a pause to end."""
    for name in ("PAUSE_S", "KNOWN_S", "ASK_AGAIN_S"):
        monkeypatch.setattr(dicom_catalogue, name, 0.0)


@pytest.fixture
def add(archive: Archive, tmp_path: Path) -> Callable[..., str]:
    """Put a series of noise into the archive; returns its UID."""

    def add(seed: int = 0, *, modality: str = "CT", turned: bool = False, study: str = "") -> str:
        array = np.random.default_rng(seed).integers(-100, 200, SHAPE, dtype=np.int16)
        affine = np.diag([2.0, 1.5, 3.0, 1.0])
        if turned:
            angle = np.deg2rad(20)
            affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        folder = tmp_path / f"series-{seed}-{modality}"
        write_dicom_series(Volume(array, affine, modality), folder, patient=DicomPatient("Doe^Jane", PATIENT))
        if study:
            for file in folder.iterdir():
                header = pydicom.dcmread(file)
                header.StudyInstanceUID = study
                header.save_as(file)
        return archive.add(folder)

    return add


def some_mask(studies: DicomWebArchive, image: str, file: Path, *, codes: str = "") -> Volume:
    """A mask of two labels on an image's grid, written to ``file``, its axes turned to ``codes`` if given."""
    volume = read_volume(studies.get_image_uri(image))
    array = np.zeros(SHAPE, np.uint8)
    array[1:3, 2:7, 3:9], array[3, 4:6, 2] = 1, 2
    mask = volume.with_array(array)
    write_volume(reoriented(mask, codes) if codes else mask, file)
    return mask


def test_ct_and_mr_are_images_and_nothing_else(open_studies: Open, add: Callable[..., str]) -> None:
    ct, mr, pet = add(1), add(2, modality="MR"), add(3)
    studies = open_studies()
    assert sorted(studies.list_images()) == sorted([ct, mr, pet])
    assert open_studies(filters={"Modality": "MR"}).list_images() == [mr]
    assert sorted(open_studies(filters={"PatientID": PATIENT}).list_images()) == sorted([ct, mr, pet])
    assert open_studies(filters={"PatientID": "somebody else"}).list_images() == []


def test_a_store_that_does_not_repeat_the_modality_it_was_asked_for(
    archive: Archive, open_studies: Open, add: Callable[..., str]
) -> None:
    archive.silent_about = ("Modality",)
    ct, mr = add(1), add(2, modality="MR")
    assert sorted(open_studies().list_images()) == sorted([ct, mr])
    assert open_studies(filters={"Modality": "MR"}).list_images() == [mr]


def test_several_series_of_one_study(open_studies: Open, add: Callable[..., str]) -> None:
    first, second = add(1, study="2.25.77"), add(2, study="2.25.77")
    studies = open_studies()
    for uid in (first, second):
        assert read_volume(studies.get_image_uri(uid)).series_uid == uid
        assert studies.get_image_info(uid)["StudyInstanceUID"] == "2.25.77"


def test_a_store_that_lists_a_page_at_a_time(archive: Archive, open_studies: Open, add: Callable[..., str]) -> None:
    all_of_them = {add(seed) for seed in range(5)}
    archive.page = 2
    assert set(open_studies().list_images()) == all_of_them


def test_lists_are_remembered_for_a_while_and_new_studies_found(
    archive: Archive, open_studies: Open, add: Callable[..., str]
) -> None:
    add(1)
    studies = open_studies(fresh_s=60.0)
    assert len(studies.list_images()) == 1
    asked = len(archive.asked)
    late = add(2)
    assert len(studies.list_images()) == 1
    assert len(archive.asked) == asked
    assert studies.knows(late)
    assert late in studies.list_images()


@pytest.mark.parametrize(
    "name", ["1.2.3", "", ".", "..", "../local", "/etc/passwd", "2.25.1/../2", "2.25.1?x=1", "1" * 70]
)
def test_other_names_are_unknown(name: str, open_studies: Open, add: Callable[..., str]) -> None:
    add(1)
    studies = open_studies()
    assert not studies.knows(name)
    for ask in (studies.get_image_uri, studies.get_image_info):
        with pytest.raises(NotKnown):
            ask(name)


def test_a_series_is_fetched_once_and_whole(archive: Archive, open_studies: Open, add: Callable[..., str]) -> None:
    uid = add(1)
    studies = open_studies()
    archive.withheld = 2
    with pytest.raises(StoreUnavailable, match="3 of the 5"):
        studies.get_image_uri(uid)
    archive.withheld = 0
    folder = studies.get_image_uri(uid)
    assert read_volume(folder).shape == SHAPE
    asked = sum("/series/" in path for path in archive.asked)
    assert studies.get_image_uri(uid) == folder
    assert sum("/series/" in path for path in archive.asked) == asked


def test_a_series_that_still_grows_is_fetched_again(
    archive: Archive, open_studies: Open, add: Callable[..., str]
) -> None:
    uid = add(1)
    last = archive.files.pop()
    studies = open_studies()
    assert read_volume(studies.get_image_uri(uid)).shape[0] == 4
    archive.files.append(last)
    assert read_volume(studies.get_image_uri(uid)).shape[0] == 5


def test_a_full_cache_forgets_what_was_not_used_for_longest(
    open_studies: Open, add: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(dicom_catalogue, "IN_USE_S", 0.0)
    first, second, third = add(1), add(2), add(3)
    one_mb_is_too_much = sum(file.stat().st_size for file in (tmp_path / "series-1-CT").iterdir()) * 5 // 2
    studies = open_studies(quota_bytes=one_mb_is_too_much)
    some_mask(studies, first, tmp_path / "mask.nii.gz")
    studies.save_label(first, str(tmp_path / "mask.nii.gz"), "partial", {"label_info": NAMES})
    for uid in (second, first, third):
        time.sleep(0.02)
        studies.get_image_uri(uid)
    assert {path.name for path in (tmp_path / "local" / "images").iterdir()} == {first, third}
    time.sleep(0.02)
    studies.get_image_uri(second)
    assert not (tmp_path / "local" / "images" / first).exists()
    studies.refresh()
    assert studies.get_labels_by_image_id(first) == {"partial": first}, "work outlives the cached image"
    assert Path(studies.get_label_uri(first, "partial")).is_file()


def test_a_final_label_becomes_a_seg_and_comes_back(
    archive: Archive, open_studies: Open, add: Callable[..., str], tmp_path: Path
) -> None:
    uid, other = add(1, turned=True), add(2)
    studies = open_studies(fresh_s=60.0)
    assert sorted(studies.get_unlabeled_images()) == sorted([uid, other])
    mask = some_mask(studies, uid, tmp_path / "mask.nii.gz")
    assert studies.save_label(uid, str(tmp_path / "mask.nii.gz"), "final", {"label_info": NAMES}) == uid
    assert studies.get_unlabeled_images() == [other], "at once, although lists are kept for a minute"
    assert studies.status()["completed"] == 1
    assert sorted(studies.list_images()) == sorted([uid, other]), "a SEG is no image"

    seg = pydicom.dcmread(pydicom.filebase.DicomBytesIO(archive.files[-1]))
    assert [str(item.SegmentLabel) for item in seg.SegmentSequence] == ["liver", "Läsion 肿瘤"]
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == uid

    elsewhere = DicomWebArchive(
        DicomStore(StoreAccess(url=archive.url)),
        folder=tmp_path / "another machine", filters={"Modality": ["CT"]}, quota_bytes=10**9,
    )  # fmt: skip
    back = read_volume(elsewhere.get_label_uri(uid, "final"))
    assert (back.array == mask.array).all()
    assert back.grid.matches(mask.grid)
    assert elsewhere.get_label_info(uid, "final")["label_info"] == NAMES
    assert [Path(pair["label"]).name for pair in elsewhere.datalist()] == [f"{uid}.nii.gz"]


def test_a_multi_frame_series_is_an_image_like_another(
    archive: Archive, open_studies: Open, add: Callable[..., str], tmp_path: Path
) -> None:
    add(3)
    truth = read_volume(tmp_path / "series-3-CT")
    archive.files.clear()
    image = archive.add(multi_frame(tmp_path / "series-3-CT", tmp_path / "multi" / "1.dcm", order=(3, 0, 4, 1, 2)))
    studies = open_studies()
    assert studies.list_images() == [image]
    volume = read_volume(studies.get_image_uri(image))
    np.testing.assert_array_equal(volume.array, truth.array)
    assert volume.grid.matches(truth.grid)
    mask = some_mask(studies, image, tmp_path / "mask.nii.gz")
    studies.save_label(image, str(tmp_path / "mask.nii.gz"), "final", {"label_info": NAMES})
    assert studies.get_labeled_images() == [image]
    np.testing.assert_array_equal(read_volume(studies.get_label_uri(image, "final")).array, mask.array)


def test_one_label_in_a_mask_keeps_its_name(open_studies: Open, add: Callable[..., str], tmp_path: Path) -> None:
    uid = add(1)
    studies = open_studies()
    mask = some_mask(studies, uid, tmp_path / "mask.nii.gz")
    write_volume(mask.with_array(np.where(mask.array == 2, 2, 0).astype(np.uint8)), tmp_path / "mask.nii.gz")
    studies.save_label(uid, str(tmp_path / "mask.nii.gz"), "final", {"label_info": NAMES})
    (tmp_path / "local" / "labels" / "final" / f"{uid}.nii.gz").unlink()
    assert set(np.unique(read_volume(studies.get_label_uri(uid, "final")).array)) == {0, 2}
    assert studies.get_label_info(uid, "final")["label_info"] == NAMES[1:]


def test_a_viewer_may_have_turned_the_axes(open_studies: Open, add: Callable[..., str], tmp_path: Path) -> None:
    uid = add(1)
    studies = open_studies()
    mask = some_mask(studies, uid, tmp_path / "mask.nrrd", codes="RIP")
    studies.save_label(uid, str(tmp_path / "mask.nrrd"), "final", {"label_info": NAMES})
    assert (read_volume(studies.get_label_uri(uid, "final")).array == mask.array).all()


def test_the_newest_seg_counts_and_a_removed_one_is_gone(
    archive: Archive, open_studies: Open, add: Callable[..., str], tmp_path: Path
) -> None:
    uid = add(1)
    studies = open_studies()
    mask = some_mask(studies, uid, tmp_path / "mask.nii.gz")
    studies.save_label(uid, str(tmp_path / "mask.nii.gz"), "final", {"label_info": NAMES})
    time.sleep(1.1)  # the time of writing decides
    write_volume(mask.with_array((mask.array == 1).astype(np.uint8)), tmp_path / "mask.nii.gz")
    studies.save_label(uid, str(tmp_path / "mask.nii.gz"), "final", {"label_info": NAMES[:1]})
    assert set(np.unique(read_volume(studies.get_label_uri(uid, "final")).array)) == {0, 1}
    archive.files.pop()
    assert set(np.unique(read_volume(studies.get_label_uri(uid, "final")).array)) == {0, 1, 2}
    archive.files.pop()
    assert studies.get_labels_by_image_id(uid) == {}
    assert studies.get_label_uri(uid, "final") == ""


def test_a_clock_that_is_set_back_makes_no_older_seg_count(
    archive: Archive, open_studies: Open, add: Callable[..., str], tmp_path: Path
) -> None:
    uid = add(1)
    mask = some_mask(open_studies(), uid, tmp_path / "mask.nii.gz")
    open_studies().save_label(uid, str(tmp_path / "mask.nii.gz"), "final", {"label_info": NAMES})
    ahead = pydicom.dcmread(DicomBytesIO(archive.files[-1]))
    ahead.ContentDate = ahead.SeriesDate = "20991231"
    written = DicomBytesIO()
    ahead.save_as(written)
    archive.files[-1] = written.getvalue()
    write_volume(mask.with_array((mask.array == 1).astype(np.uint8)), tmp_path / "mask.nii.gz")
    open_studies().save_label(uid, str(tmp_path / "mask.nii.gz"), "final", {"label_info": NAMES[:1]})
    studies = open_studies()
    assert set(np.unique(read_volume(studies.get_label_uri(uid, "final")).array)) == {0, 1}
    assert "stored" not in studies.get_image_info(uid)


def test_a_label_is_kept_before_it_is_sent(
    archive: Archive, open_studies: Open, add: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the process is killed while it sends: nothing of ours runs after that."""
    uid = add(1)
    mask = some_mask(open_studies(), uid, tmp_path / "mask.nii.gz")

    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(DicomStore, "add", killed)
        interrupted = open_studies()
        with pytest.raises(Killed):
            interrupted.save_label(uid, str(tmp_path / "mask.nii.gz"), "final", {"label_info": NAMES})
    studies = open_studies()
    assert list(studies.get_labels_by_image_id(uid)) == [UNSENT]
    kept = studies.get_label_uri(uid, UNSENT)
    assert (read_volume(kept).array == mask.array).all()
    studies.save_label(uid, kept, "final", studies.get_label_info(uid, UNSENT))
    assert open_studies().get_labels_by_image_id(uid) == {"final": uid}


LIVER, SPLEEN = np.zeros((2, *SHAPE), np.uint8)
LIVER[1:4, 2:7, 3:9] = SPLEEN[2:4, 8:11, 2:5] = 1


@pytest.fixture
def plant(archive: Archive, tmp_path: Path) -> Callable[..., str]:
    """Put another program's SEG of a series of :func:`add` into the archive; returns its instance UID."""

    def plant(*segments: tuple[int, str, np.ndarray], seed: int = 1, **says: Any) -> str:
        path = plant_seg(tmp_path / "seg.dcm", tmp_path / f"series-{seed}-CT", segments, **says)
        archive.files.append(path.read_bytes())
        return str(pydicom.dcmread(path).SOPInstanceUID)

    return plant


@pytest.mark.parametrize("names", ["series", "frames", "images"])
def test_a_seg_may_name_its_images_in_any_way(
    names: str, open_studies: Open, add: Callable[..., str], plant: Callable[..., str]
) -> None:
    add(2, study="2.25.77")
    uid = add(1, study="2.25.77")
    plant((1, "liver", LIVER), names=names)
    studies = open_studies()
    assert studies.get_labeled_images() == [uid]
    assert (read_volume(studies.get_label_uri(uid, "final")).array == LIVER).all()


@pytest.mark.parametrize("names", ["nothing", "frames"])
def test_a_seg_of_no_known_image_is_left_out_with_a_word(
    names: str, archive: Archive, open_studies: Open, add: Callable[..., str], plant: Callable[..., str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    add(1)
    instance = plant((1, "liver", LIVER), names=names)
    if names == "frames":
        archive.files = [file for file in archive.files if file == archive.files[-1]]
        add(2)
        study = str(archive.headers()[-1].StudyInstanceUID)
        seg = pydicom.dcmread(DicomBytesIO(archive.files[0]))
        seg.StudyInstanceUID = study
        seg.save_as(buffer := DicomBytesIO())
        archive.files[0] = buffer.getvalue()
    with caplog.at_level(logging.WARNING):
        assert open_studies().get_labeled_images() == []
    assert instance in caplog.text


def test_several_segs_are_one_label_and_it_says_so(
    open_studies: Open, add: Callable[..., str], plant: Callable[..., str]
) -> None:
    uid = add(1)
    moved = np.roll(SPLEEN, 3, axis=2)
    old = plant((1, "liver", LIVER), (2, "spleen", moved), written="120001")
    studies = open_studies()
    assert (read_volume(studies.get_label_uri(uid, "final")).array == LIVER + 2 * moved).all()
    new = plant((1, "spleen", SPLEEN), written="120002")
    info = studies.get_label_info(uid, "final")
    values = {one["name"]: one["idx"] for one in info["label_info"]}
    array = read_volume(studies.get_label_uri(uid, "final")).array
    assert ((array == values["spleen"]) == SPLEEN).all()
    assert ((array == values["liver"]) == LIVER.astype(bool)).all()
    assert [(one["SOPInstanceUID"], one["labels"]) for one in info["segmentations"]] == [
        (new, ["spleen"]),
        (old, ["liver"]),
    ]
    assert "2 SEGs of this image" in info["notes"][0]


def test_our_own_seg_and_that_of_somebody_else(
    open_studies: Open, add: Callable[..., str], plant: Callable[..., str], tmp_path: Path
) -> None:
    uid = add(1)
    plant((1, "kidney", SPLEEN), written="120001")
    studies = open_studies()
    some_mask(studies, uid, tmp_path / "mask.nii.gz")
    studies.save_label(uid, str(tmp_path / "mask.nii.gz"), "final", {"label_info": NAMES})
    names = [one["name"] for one in studies.get_label_info(uid, "final")["label_info"]]
    assert names == [NAMES[0]["name"], NAMES[1]["name"], "kidney"]


def test_segments_that_overlap_are_said_to(
    open_studies: Open, add: Callable[..., str], plant: Callable[..., str]
) -> None:
    uid = add(1)
    plant((1, "lesion", SPLEEN), (2, "body", np.ones(SHAPE, np.uint8)))
    studies = open_studies()
    assert (read_volume(studies.get_label_uri(uid, "final")).array == 2 - SPLEEN).all()
    assert "overlap" in studies.get_label_info(uid, "final")["notes"][0]


def test_a_seg_that_cannot_be_read_has_a_reason_without_a_path(
    open_studies: Open, add: Callable[..., str], plant: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    uid = add(1)
    instance = plant((1, "liver", LIVER), edit=lambda seg: seg.pop("PixelData"))
    studies = open_studies()
    with pytest.raises(UnreadableVolume, match=f"SEG {instance}: no pixels"):
        studies.get_label_uri(uid, "final")
    with caplog.at_level(logging.WARNING):
        assert studies.datalist() == []
    plant((1, "spleen", SPLEEN), written="110000")
    assert f"left out: SEG {instance}" in str(studies.get_label_info(uid, "final")["notes"])
    assert (read_volume(studies.get_label_uri(uid, "final")).array == SPLEEN).all()


@pytest.mark.parametrize(
    ("array", "info", "message"),
    [
        (np.zeros(SHAPE, np.uint8), {"label_info": NAMES}, "no voxel"),
        (np.full(SHAPE, 7, np.uint8), {"label_info": NAMES}, "holds \\[7\\]"),
        (np.ones(SHAPE, np.uint8), {}, "label_info"),
        (np.ones((3, 3, 3), np.uint8), {"label_info": NAMES}, "not on the grid"),
        (np.ones(SHAPE, np.uint8), {"label_info": [{"name": "a\\b", "idx": 1}]}, "cannot be written"),
    ],
)
def test_what_cannot_be_stored_is_refused(
    array: np.ndarray, info: dict[str, Any], message: str,
    archive: Archive, open_studies: Open, add: Callable[..., str], tmp_path: Path,
) -> None:  # fmt: skip
    uid = add(1)
    studies = open_studies()
    held = len(archive.files)
    affine = read_volume(studies.get_image_uri(uid)).affine
    write_volume(Volume(array, affine), tmp_path / "mask.nii.gz")
    with pytest.raises(InvalidRequest, match=message):
        studies.save_label(uid, str(tmp_path / "mask.nii.gz"), "final", info)
    assert len(archive.files) == held
    assert studies.get_labels_by_image_id(uid) == {}


def test_a_label_that_the_store_cannot_take_is_kept(
    archive: Archive, open_studies: Open, add: Callable[..., str], tmp_path: Path
) -> None:
    uid = add(1)
    studies = open_studies(fresh_s=60.0)
    mask = some_mask(studies, uid, tmp_path / "mask.nii.gz")
    archive.status = 507
    with pytest.raises(StoreUnavailable, match=UNSENT):
        studies.save_label(uid, str(tmp_path / "mask.nii.gz"), "final", {"label_info": NAMES})
    kept = studies.get_label_uri(uid, UNSENT)
    assert (read_volume(kept).array == mask.array).all()
    archive.status = 200
    studies.save_label(uid, kept, "final", studies.get_label_info(uid, UNSENT))
    assert studies.get_labels_by_image_id(uid) == {"final": uid}


def test_a_store_that_is_down_and_comes_back(open_studies: Open, add: Callable[..., str], archive: Archive) -> None:
    uid = add(1)
    studies, untouched = open_studies(), open_studies()
    folder = studies.get_image_uri(uid)
    files, port = archive.files, archive.port
    archive.close()
    assert studies.get_image_uri(uid) == folder, "what is here can be worked on"
    assert studies.status()["total"] == 1
    assert "cannot be reached" in studies.status()["trouble"]
    assert untouched.status()["total"] == 0
    with pytest.raises(StoreUnavailable, match="Check that it runs"):
        untouched.list_images()
    again = Archive(port)
    again.files = files
    try:
        assert untouched.list_images() == [uid]
        assert studies.status() == {"total": 1, "completed": 0, "label_tags": {}}
    finally:
        again.close()


def test_a_silent_store_is_not_waited_for(archive: Archive, open_studies: Open, add: Callable[..., str]) -> None:
    add(1)
    archive.silent_s = 3.0
    started = time.monotonic()
    with pytest.raises(StoreUnavailable):
        open_studies(read_s=0.2).list_images()
    assert time.monotonic() - started < 2.0


def test_a_failing_answer_is_asked_for_again(archive: Archive, add: Callable[..., str]) -> None:
    add(1)
    archive.status = 503
    store = DicomStore(StoreAccess(url=archive.url, retries=2))
    with pytest.raises(StoreUnavailable, match="503"):
        store.series({"Modality": "CT"})
    assert len(archive.asked) == 3


@pytest.mark.parametrize("status", [500, 502, 503])
def test_one_failure_of_each_answer_is_not_noticed(
    status: int, archive: Archive, tmp_path: Path, add: Callable[..., str]
) -> None:
    uid = add(1)
    archive.stumbles = status
    store = DicomStore(StoreAccess(url=archive.url))
    studies = DicomWebArchive(store, folder=tmp_path / "local", filters={"Modality": "CT"}, quota_bytes=10**9)
    mask = some_mask(studies, uid, tmp_path / "mask.nii.gz")
    archive.stumbles = 0  # what is sent there is not sent again
    studies.save_label(uid, str(tmp_path / "mask.nii.gz"), "final", {"label_info": NAMES})
    archive.stumbles = status
    again = DicomWebArchive(store, folder=tmp_path / "other", filters={"Modality": "CT"}, quota_bytes=10**9)
    assert np.array_equal(read_volume(again.get_label_uri(uid, "final")).array, mask.array)


def test_images_that_come_twice_do_not_replace_others(
    archive: Archive, open_studies: Open, add: Callable[..., str]
) -> None:
    uid = add(1)
    archive.files.append(archive.files[0])
    assert read_volume(open_studies().get_image_uri(uid)).shape == SHAPE


def test_uids_that_are_padded_with_nulls(archive: Archive, open_studies: Open, add: Callable[..., str]) -> None:
    uid = add(1)
    (listed,) = archive.series({})
    for one in listed.values():
        one["Value"] = [f"{value}\0" if one["vr"] == "UI" else value for value in one["Value"]]
    archive.series = lambda query: [listed] if query.get("offset", ["0"]) == ["0"] else []  # type: ignore[method-assign]
    studies = open_studies()
    assert studies.list_images() == [uid]
    assert read_volume(studies.get_image_uri(uid)).shape == SHAPE


@pytest.mark.parametrize("asked", ["3600", "Wed, 21 Oct 2099 07:28:00 GMT", "soon"])
def test_a_store_that_asks_for_an_hour_is_asked_again_in_a_moment(
    asked: str, archive: Archive, add: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom_web, "LONGEST_PAUSE_S", 0.1)
    add(1)
    archive.status, archive.retry_after = 503, asked
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match="503"):
        DicomStore(StoreAccess(url=archive.url, retries=1)).series({"Modality": "CT"})
    assert len(archive.asked) == 2
    assert time.monotonic() - started < 2.0


@pytest.mark.parametrize(
    ("login", "access"),
    [
        ("Basic cmVhZGVyOnNlc2FtZQ==", {"user": "reader", "password": "sesame"}),
        ("Bearer abc", {"token": lambda: "abc"}),
    ],
)
def test_logins(
    login: str, access: dict[str, Any], archive: Archive, open_studies: Open, add: Callable[..., str]
) -> None:
    uid = add(1)
    archive.login = login
    assert read_volume(open_studies(**access).get_image_uri(uid)).shape == SHAPE
    with pytest.raises(StoreRefused, match="SSMSAM_DICOMWEB_TOKEN"):
        open_studies(user="reader", password="wrong").list_images()


def test_an_address_that_is_no_dicomweb(archive: Archive, open_studies: Open) -> None:
    archive.status = 404
    with pytest.raises(StoreRefused, match="DICOMweb root"):
        open_studies().list_images()


def test_secrets_and_patients_stay_out_of_logs_and_files(
    open_studies: Open, add: Callable[..., str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    uid = add(1)
    studies = open_studies(user="reader", password="sesame")
    some_mask(studies, uid, tmp_path / "mask.nii.gz")
    studies.save_label(uid, str(tmp_path / "mask.nii.gz"), "final", {"label_info": NAMES})
    assert studies.get_image_info(uid)["PatientID"] == PATIENT
    studies.update_image_info(uid, {"strategy": {}})
    written = (tmp_path / "local" / "datastore_v2.json").read_text()
    for secret in (PATIENT, "Doe", "sesame"):
        assert secret not in caplog.text
        assert secret not in written
    assert "sesame" not in repr(studies._store.access)


def test_images_are_neither_added_nor_removed_here(open_studies: Open, add: Callable[..., str]) -> None:
    uid = add(1)
    studies = open_studies()
    for change in (lambda: studies.add_image("x", "x.nii.gz", {}), lambda: studies.remove_image(uid)):
        with pytest.raises(InvalidRequest, match="there"):
            change()


def test_a_local_label_can_be_removed(open_studies: Open, add: Callable[..., str], tmp_path: Path) -> None:
    uid = add(1)
    studies = open_studies()
    some_mask(studies, uid, tmp_path / "mask.nii.gz")
    studies.save_label(uid, str(tmp_path / "mask.nii.gz"), "original", {})
    assert studies.status()["label_tags"] == {"original": 1}
    studies.remove_label(uid, "original")
    assert studies.get_labels_by_image_id(uid) == {}
    assert open_studies().get_labels_by_image_id(uid) == {}, "on disk too"


def test_raw_voxels_of_an_older_viewer(open_studies: Open, add: Callable[..., str], tmp_path: Path) -> None:
    uid = add(1)
    studies = open_studies()
    mask = some_mask(studies, uid, tmp_path / "mask.nii.gz")
    raw = tmp_path / "label.bin"
    mask.array.tofile(raw)
    studies.save_label(uid, str(raw), "final", {"label_info": NAMES})
    assert (read_volume(studies.get_label_uri(uid, "final")).array == mask.array).all()
    raw.write_bytes(b"123")
    with pytest.raises(InvalidSubmission, match="3 bytes"):
        studies.save_label(uid, str(raw), "final", {"label_info": NAMES})


def test_the_listing_for_viewers(open_studies: Open, add: Callable[..., str], tmp_path: Path) -> None:
    first, second = add(1), add(2)
    studies = open_studies()
    some_mask(studies, first, tmp_path / "mask.nii.gz")
    studies.save_label(first, str(tmp_path / "mask.nii.gz"), "final", {"label_info": NAMES})
    objects = studies.json()["objects"]
    assert set(objects) == {first, second}
    assert set(objects[first]["labels"]) == {"final"}
    assert PATIENT not in str(objects)


def test_a_submission_has_to_name_its_labels(
    archive: Archive, add: Callable[..., str], open_studies: Open, tmp_path: Path
) -> None:
    """By name only, though the server offers labels in an order."""
    uid = add(1)
    some_mask(open_studies(), uid, tmp_path / "mask.nii.gz")
    studies = DicomWebStudies(
        DicomStore(StoreAccess(url=archive.url, retries=0)),
        folder=tmp_path / "mine",
        filters={"Modality": ["CT"]},
        quota_bytes=10**9,
        labels=("spleen", "aorta"),
    )
    stored = len(archive.files)
    for tag in ("final", "partial"):
        for said in ({}, {"label_info": "[]"}, {"label_info": [{"name": "background", "idx": 0}]}):
            with pytest.raises(InvalidRequest, match="label_info"):
                studies.save_label(uid, str(tmp_path / "mask.nii.gz"), tag, said)
    assert len(archive.files) == stored
    assert not studies.annotations(uid).slices
    studies.save_label(uid, str(tmp_path / "mask.nii.gz"), "final", {"params": {"label_names": {"liver": 1, "a": 2}}})
    assert [item.SegmentLabel for item in archive.headers()[-1].SegmentSequence] == ["a", "liver"]


@pytest.mark.parametrize(
    "habits",
    [
        {"nothing": 404},
        {"nothing": 204},
        {"relational": False},
        {"relational": False, "nothing": 404},
        {"wildcard": False},
        {"multipart": "preamble"},
        {"multipart": "lf"},
        {"count_off": -1},
        {"count_off": 1},
    ],
    ids=str,
)
def test_archives_have_habits_of_their_own(
    habits: dict[str, Any], archive: Archive, open_studies: Open, add: Callable[..., str]
) -> None:
    uid = add(1)
    for name, value in habits.items():
        setattr(archive, name, value)
    studies = open_studies()
    assert studies.list_images() == [uid] and studies.get_labeled_images() == []
    for _ in range(3):
        assert read_volume(studies.get_image_uri(uid)).shape == SHAPE
    fetched = [asked for asked in archive.asked if asked.endswith(uid)]
    assert len(fetched) == (2 if habits == {"wildcard": False} else 1)


def test_an_address_that_is_no_store_is_said(archive: Archive) -> None:
    archive.status = 404
    with pytest.raises(StoreRefused, match="DICOMweb root"):
        DicomStore(StoreAccess(url=archive.url, retries=0)).series({"Modality": "CT"})


def test_studies_of_an_archive_without_relational_queries_are_not_asked_for_every_time(
    archive: Archive, open_studies: Open, add: Callable[..., str]
) -> None:
    images = {add(1), add(2, modality="MR")}
    archive.relational = False
    studies = open_studies()
    assert set(studies.list_images()) == images
    before = len([asked for asked in archive.asked if "/series?" in asked or asked.endswith("/series")])
    assert set(studies.list_images()) == images
    assert len([asked for asked in archive.asked if "/series?" in asked or asked.endswith("/series")]) == before


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, SeriesRefused),
        (403, SeriesRefused),
        (406, SeriesRefused),
        (500, SeriesUnavailable),
        (0, SeriesUnavailable),
    ],
)
def test_a_series_that_cannot_be_had_says_so_and_hides_no_other(
    status: int, error: type[Exception], archive: Archive, open_studies: Open, add: Callable[..., str]
) -> None:
    gone, fine = add(1), add(2)
    archive.broken = {gone: status}
    studies = open_studies()
    with pytest.raises(error, match=gone):
        studies.get_image_uri(gone)
    assert set(studies.list_images()) == {gone, fine}
    assert read_volume(studies.get_image_uri(fine)).shape == SHAPE


@pytest.mark.parametrize("status", [404, 500, 403])
def test_a_seg_whose_header_cannot_be_had_hides_no_other(
    status: int, archive: Archive, open_studies: Open, add: Callable[..., str], plant: Callable[..., str]
) -> None:
    uid = add(1)
    plant((1, "liver", LIVER))
    seg = str(archive.headers()[-1].SeriesInstanceUID)
    archive.broken = {seg: status}
    studies = open_studies()
    assert studies.get_unlabeled_images() == [uid]
    archive.broken = {}
    assert studies.get_unlabeled_images() == [uid]  # it is left alone for a while


def test_a_certificate_that_is_not_trusted_is_said(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise requests.exceptions.SSLError("certificate verify failed: self-signed certificate")

    monkeypatch.setattr(requests.Session, "request", refused)
    with pytest.raises(StoreUnavailable, match="REQUESTS_CA_BUNDLE"):
        DicomStore(StoreAccess(url=archive.url, retries=0)).series({"Modality": "CT"})


def test_half_a_series_of_a_store_that_does_not_count(
    archive: Archive, open_studies: Open, add: Callable[..., str]
) -> None:
    uid = add(1)
    archive.counts, archive.withheld = False, 2
    with pytest.raises(SeriesUnavailable, match="3 of the 5"):
        open_studies().get_image_uri(uid)
    archive.withheld = 0
    assert read_volume(open_studies().get_image_uri(uid)).shape == SHAPE


@pytest.mark.parametrize("short", [30, 100, 700])
def test_an_answer_that_is_cut_short_is_no_whole_series(
    short: int, archive: Archive, open_studies: Open, add: Callable[..., str]
) -> None:
    """Where nothing says how long it is: in the last boundary, in the last image, before it."""
    uid = add(1)
    archive.cut_at = sum(len(file) + 50 for file in archive.files) - short
    with pytest.raises(SeriesUnavailable, match="to their end"):
        open_studies().get_image_uri(uid)
    archive.cut_at = 0
    assert read_volume(open_studies().get_image_uri(uid)).shape == SHAPE


@pytest.mark.parametrize("hidden", [False, True], ids=["listed", "not listed yet"])
@pytest.mark.parametrize("once", [0, 200, 409])
def test_a_seg_whose_answer_was_lost_is_not_stored_twice(
    once: int, hidden: bool, archive: Archive, open_studies: Open, add: Callable[..., str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What is sent again, because the list does not show it yet, is the same object."""
    uid = add(1)
    studies = open_studies()
    some_mask(studies, uid, tmp_path / "mask.nii.gz")
    archive.lost, archive.once = 1, once
    with pytest.raises(StoreUnavailable, match=UNSENT):
        studies.save_label(uid, str(tmp_path / "mask.nii.gz"), "final", {"label_info": NAMES})
    if hidden:
        monkeypatch.setattr(DicomWebArchive, "_there", lambda *_: None)
    for again in (lambda: studies, open_studies):
        again().save_label(uid, str(tmp_path / "mask.nii.gz"), "final", {"label_info": NAMES})
    segs = [str(header.SOPInstanceUID) for header in archive.headers() if header.Modality == "SEG"]
    assert len(set(segs)) == (1 if not hidden else 2), "with the list, nothing is sent again"
    assert len(segs) == 1 or hidden
    assert studies.get_labels_by_image_id(uid) == {"final": uid}
    assert not list((tmp_path / "local" / "outgoing").iterdir())


def submitted(studies: DicomWebStudies, uid: str, mask: Path) -> Any:
    return studies.submit(uid, mask, {"label_info": NAMES, "client_id": "reader"}, tag="final")


@pytest.fixture
def open_whole(archive: Archive, tmp_path: Path) -> Callable[[], DicomWebStudies]:
    """The studies as the server has them, with the annotations."""
    return lambda: DicomWebStudies(
        DicomStore(StoreAccess(url=archive.url, retries=0)),
        folder=tmp_path / "mine", filters={"Modality": ["CT", "MR"]}, quota_bytes=10**9, fresh_s=0.0,
    )  # fmt: skip


@pytest.mark.parametrize("cached", [True, False], ids=["opened before", "never opened"])
@pytest.mark.parametrize("restarted", [True, False], ids=["restarted", ""])
def test_a_finished_label_while_the_archive_is_down_gets_there_later(
    cached: bool, restarted: bool, archive: Archive, open_studies: Open, open_whole: Callable[[], DicomWebStudies],
    add: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    uid = add(1)
    mask = some_mask(open_studies(), uid, tmp_path / "mask.nii.gz")
    studies = open_whole()
    assert studies.files.knows(uid)
    monkeypatch.setattr(DicomWebStudies, "deliver_later", lambda self: None)
    if cached:
        studies.get_image_uri(uid)
    archive.status = 503
    if cached and restarted:
        studies = open_whole()
    with pytest.raises(StoreUnavailable, match="kept on this server"):
        submitted(studies, uid, tmp_path / "mask.nii.gz")
    assert studies.deliver() == 1
    if restarted:
        studies = open_whole()
        assert studies.deliver() == 1, "still down"
    archive.status = 200
    assert studies.deliver() == 0
    assert [header.Modality for header in archive.headers()].count("SEG") == 1
    assert studies.annotations(uid).finished
    stored = read_volume(studies.get_label_uri(uid, "final")).array
    values = {one["name"]: one["idx"] for one in studies.get_label_info(uid, "final")["label_info"]}
    for one in NAMES:
        assert ((stored == values[one["name"]]) == (mask.array == one["idx"])).all()
    submitted(studies, uid, tmp_path / "mask.nii.gz")
    assert [header.Modality for header in archive.headers()].count("SEG") == 1


@pytest.mark.parametrize("down", [False, True], ids=["", "down at first"])
def test_labels_that_overlap_do_so_in_the_archive(
    down: bool, archive: Archive, open_whole: Callable[[], DicomWebStudies], add: Callable[..., str],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    uid = add(1)
    monkeypatch.setattr(DicomWebStudies, "deliver_later", lambda self: None)
    studies = open_whole()
    image = read_volume(studies.get_image_uri(uid))
    organ = (LIVER | SPLEEN).astype(np.uint8)
    for name, array in (("spleen", SPLEEN), ("organ", organ)):  # the later covers the earlier
        write_volume(image.with_array(array), tmp_path / "mask.nii.gz")
        archive.status = 503 if down and name == "organ" else 200
        with pytest.raises(StoreUnavailable) if archive.status == 503 else nullcontext():
            studies.submit(uid, tmp_path / "mask.nii.gz", {"label_info": [{"name": name, "idx": 1}]}, tag="final")
    archive.status = 200
    assert studies.deliver() == 0
    seg = pydicom.dcmread(DicomBytesIO(archive.files[-1]))
    assert seg.Modality == "SEG"
    assert [item.SegmentLabel for item in seg.SegmentSequence] == ["organ", "spleen"]
    voxels = dict.fromkeys(["organ", "spleen"], 0)
    for frame, groups in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        voxels[seg.SegmentSequence[number - 1].SegmentLabel] += int(frame.sum())
    assert voxels == {"organ": int(organ.sum()), "spleen": int(SPLEEN.sum())}
    assert "the DICOM SEG holds all of them" in studies.get_label_info(uid, "final")["notes"][0]


def test_what_was_opened_again_while_the_archive_was_down_is_not_sent(
    archive: Archive, open_studies: Open, open_whole: Callable[[], DicomWebStudies], add: Callable[..., str],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    uid = add(1)
    some_mask(open_studies(), uid, tmp_path / "mask.nii.gz")
    monkeypatch.setattr(DicomWebStudies, "deliver_later", lambda self: None)
    studies = open_whole()
    studies.get_image_uri(uid)
    archive.status = 503
    with pytest.raises(StoreUnavailable):
        submitted(studies, uid, tmp_path / "mask.nii.gz")
    studies.change(uid, {"reopen": True})
    archive.status = 200
    assert studies.deliver() == 0
    assert "SEG" not in [header.Modality for header in archive.headers()]
    submitted(studies, uid, tmp_path / "mask.nii.gz")
    assert [header.Modality for header in archive.headers()].count("SEG") == 1


def test_a_submission_that_turns_out_not_to_fit_is_put_aside_and_said(
    archive: Archive, open_whole: Callable[[], DicomWebStudies], add: Callable[..., str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    uid = add(1)
    monkeypatch.setattr(DicomWebStudies, "deliver_later", lambda self: None)
    write_volume(Volume(np.ones((3, 3, 3), np.uint8), np.eye(4)), tmp_path / "mask.nii.gz")
    studies = open_whole()
    assert studies.files.knows(uid)
    archive.status = 503
    with pytest.raises(StoreUnavailable, match="counted as soon as"):
        submitted(studies, uid, tmp_path / "mask.nii.gz")
    archive.status = 200
    assert studies.deliver() == studies.deliver() == 0
    assert "cannot be used" in caplog.text
    damaged = tmp_path / "mine" / ".annotations-waiting" / "2020-01-01" / "submission.json"
    damaged.parent.mkdir()
    damaged.write_bytes(b"{")
    assert studies.deliver() == 0 and "is damaged and kept as" in caplog.text
    assert list((tmp_path / "mine").rglob("mask.nii.gz")), "nothing is thrown away"


def test_what_waits_is_tried_again_by_itself(
    archive: Archive, open_studies: Open, open_whole: Callable[[], DicomWebStudies], add: Callable[..., str],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    uid = add(1)
    some_mask(open_studies(), uid, tmp_path / "mask.nii.gz")
    monkeypatch.setattr(annotated_studies, "DELIVER_S", 0.05)
    studies = open_whole()
    archive.status = 507
    with pytest.raises(StoreUnavailable):
        submitted(studies, uid, tmp_path / "mask.nii.gz")
    archive.status = 200
    end = time.monotonic() + 20
    while "SEG" not in [header.Modality for header in archive.headers()]:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_store_that_hangs_holds_nobody_up_who_has_a_list(
    archive: Archive, open_studies: Open, add: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom_catalogue, "PATIENCE_S", 0.1)
    uid = add(1)
    studies = open_studies()
    folder, finished = studies.get_image_uri(uid), studies.get_labeled_images()
    assert not finished
    archive.silent_s = 3.0
    for _ in range(5):
        started = time.monotonic()
        assert studies.list_images() == [uid]
        assert studies.get_image_uri(uid) == folder
        assert studies.status()["total"] == 1
        assert time.monotonic() - started < 1.0


@pytest.mark.parametrize(
    "odd",
    [
        None,
        7,
        {"0020000D": "2.25.1", "0020000E": ["2.25.2"], "00080060": 5},
        {"0020000D": {"vr": "UI", "Value": {"a": 1}}, "0020000E": {"vr": "UI", "Value": None}},
        {"0020000D": {"Value": ["2.25.1"]}, "0020000E": {"Value": ["../../x"]}, "00080060": {"Value": ["CT"]}},
        {"0020000D": {"Value": ["2.25.1"]}, "0020000E": {"Value": ["1.2\ud83d"]}, "00080060": {"Value": ["CT"]}},
        {"0020000D": {"Value": []}, "0020000E": {"Value": ["2.25.2"]}, "00080060": {"Value": ["CT"]}},
    ],
    ids=str,
)
def test_an_odd_entry_in_the_list_hides_no_other(
    odd: Any, archive: Archive, open_studies: Open, add: Callable[..., str]
) -> None:
    uid = add(1)
    archive.odd = [odd]
    studies = open_studies()
    assert studies.list_images() == [uid]
    assert studies.get_labeled_images() == []


def test_a_patient_s_id_can_always_be_written(archive: Archive, open_studies: Open, add: Callable[..., str]) -> None:
    uid = add(1)
    known = archive.series({})[0]
    archive.odd = [{**known, "00100020": {"vr": "LO", "Value": ["4711\ud83d"]}, "0020000E": {"Value": ["2.25.3"]}}]
    studies = open_studies()
    assert set(studies.list_images()) == {uid, "2.25.3"}
    assert studies.get_image_info("2.25.3")["PatientID"] == "4711?"


def test_an_image_that_the_archive_has_only_a_part_of_is_fetched_again(
    archive: Archive, open_studies: Open, add: Callable[..., str]
) -> None:
    uid = add(1)
    whole = archive.files[-1]
    archive.files[-1] = whole[:-20]
    with pytest.raises(SeriesUnavailable, match="fewer pixels"):
        open_studies().get_image_uri(uid)
    archive.files[-1] = whole
    assert read_volume(open_studies().get_image_uri(uid)).shape == SHAPE


def test_what_is_swallowed_on_the_way_is_not_taken_for_stored(
    archive: Archive, open_studies: Open, add: Callable[..., str], tmp_path: Path
) -> None:
    """As by a page for the login in front of the archive, which answers everything with 200."""
    uid = add(1)
    studies = open_studies()
    some_mask(studies, uid, tmp_path / "mask.nii.gz")
    archive.swallows = True
    with pytest.raises(StoreUnavailable, match=r"does not list it.*kept on this server"):
        studies.save_label(uid, str(tmp_path / "mask.nii.gz"), "final", {"label_info": NAMES})
    assert list(studies.get_labels_by_image_id(uid)) == [UNSENT]
    archive.swallows = False
    studies.save_label(uid, str(tmp_path / "mask.nii.gz"), "final", {"label_info": NAMES})
    assert studies.get_labels_by_image_id(uid) == {"final": uid}


def test_a_store_that_takes_a_seg_and_falls_silent_gets_it_once(
    archive: Archive, open_studies: Open, add: Callable[..., str], tmp_path: Path
) -> None:
    uid = add(1)
    studies = open_studies(read_s=0.3)
    some_mask(studies, uid, tmp_path / "mask.nii.gz")
    archive.silent_s = 2.0
    with pytest.raises(StoreUnavailable, match=r"Timeout.*kept on this server"):
        studies.save_label(uid, str(tmp_path / "mask.nii.gz"), "final", {"label_info": NAMES})
    archive.silent_s = 0.0
    end = time.monotonic() + 20
    while "SEG" not in [header.Modality for header in archive.headers()]:  # what it took it stores
        assert time.monotonic() < end
        time.sleep(0.1)
    open_studies().save_label(uid, str(tmp_path / "mask.nii.gz"), "final", {"label_info": NAMES})
    assert [header.Modality for header in archive.headers()].count("SEG") == 1


def test_a_batch_in_a_process_of_its_own_loses_no_label(
    open_studies: Open, add: Callable[..., str], tmp_path: Path
) -> None:
    """Both write the record, and each keeps it in memory."""
    first, second = add(1), add(2)
    server, batch = open_studies(), open_studies()
    for uid in (first, second):
        server.get_image_uri(uid), batch.get_image_uri(uid)
    some_mask(server, first, tmp_path / "mask.nii.gz")
    for tag, studies, uid in (("a", server, first), ("b", batch, first), ("c", server, second), ("d", batch, second)):
        studies.save_label(uid, str(tmp_path / "mask.nii.gz"), tag, {"label_info": NAMES})
    known = open_studies()
    assert set(known.get_labels_by_image_id(first)) == {"a", "b"}
    assert set(known.get_labels_by_image_id(second)) == {"c", "d"}
