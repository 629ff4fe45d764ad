"""A folder of studies keeps annotations slice by slice."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monailabel.interfaces.tasks.strategy import Strategy

from ssmsam.annotation.annotations import InvalidSubmission, SliceKey
from ssmsam.annotation.log import Mark, Verdict
from ssmsam.embeddings.embedder import Embedder
from ssmsam.reading import UnreadableVolume, read_volume
from ssmsam.server.app import ServerApp
from ssmsam.server.datastore.folder import FolderFiles
from ssmsam.server.datastore.studies import StudiesDatastore, StudiesFolder
from ssmsam.service.errors import InvalidRequest, NotKnown
from ssmsam.service.images import Images
from ssmsam.volume.volume import Volume, reoriented
from ssmsam.volume.writing import write_volume

SHAPE = (6, 20, 24)
INFO = [{"name": "Leber é", "idx": 1}, {"name": "spleen", "idx": 2}]


@pytest.fixture
def studies(tmp_path: Path, write: Callable[..., Path]) -> StudiesFolder:
    (tmp_path / "studies").mkdir()
    for name in ("a", "b"):
        write(tmp_path / "studies" / f"{name}.nii.gz")
    return StudiesFolder(tmp_path / "studies", labels=("spleen", "Leber é"), auto_reload=False)


def mask(*slices: int, value: int = 1) -> np.ndarray:
    array = np.zeros(SHAPE, np.uint8)
    array[list(slices), 5:9, 6:12] = value
    return array


def submit(studies: StudiesFolder, array: np.ndarray, image: str = "a", tag: str = "partial", **params: object) -> None:
    volume = read_volume(studies.get_image_uri(image))
    file = Path(studies.get_image_uri(image)).parents[1] / "submitted.nrrd"
    write_volume(volume.with_array(array), file)
    studies.save_label(image, str(file), tag, {"label_info": INFO, **params})


def stored(studies: StudiesFolder, tag: str, image: str = "a") -> Volume:
    return read_volume(studies.get_label_uri(image, tag))


def test_submissions_merge_and_the_volume_stays_available(studies: StudiesFolder) -> None:
    submit(studies, mask(2), client_id="one")
    submit(studies, mask(4, value=2), client_id="two")
    assert set(studies.annotations("a").annotated("Leber é")) == {2}
    assert set(studies.annotations("a").annotated("spleen")) == {4}
    assert sorted(studies.get_unlabeled_images()) == ["a", "b"]
    counts = {"total": 2, "completed": 1, "finished": 0, "partial": 1, "label_tags": {"partial": 1}}
    assert studies.status() == counts
    merged = stored(studies, "partial")
    assert merged.grid.matches(read_volume(studies.get_image_uri("a")).grid)
    names = {entry["name"]: entry["idx"] for entry in studies.get_label_info("a", "partial")["label_info"]}
    assert names == {"spleen": 1, "Leber é": 2}  # in the server's order
    assert np.array_equal(merged.array == 1, mask(4) > 0) and np.array_equal(merged.array == 2, mask(2) > 0)
    assert studies.get_label_info("a", "partial")["client_id"] == "two"
    assert studies.get_labels_by_image_id("a") == {"partial": "a"} and studies.datalist() == []


def test_the_same_mask_once_more_changes_nothing_and_says_so(studies: StudiesFolder, tmp_path: Path) -> None:
    def sent(array: np.ndarray, client: str = "one", **params: object) -> list[str]:
        write_volume(read_volume(studies.get_image_uri("a")).with_array(array), tmp_path / "sent.nrrd")
        said = {"label_info": INFO, "client_id": client, **params}
        return studies.submit("a", tmp_path / "sent.nrrd", said).answer()["counted"]

    assert sent(mask(2, 4)) == ["counted as annotated: 2, 4 (Leber é)"]
    known = studies.annotations("a")
    assert sent(mask(2, 4)) == ["nothing new, annotated already: 2, 4 (Leber é)"]
    assert sent(mask(2, 4), client="two") == ["nothing new, annotated already: 2, 4 (Leber é)"]
    assert studies.annotations("a").revision == known.revision
    assert studies.annotations("a").slices == known.slices
    assert sent(mask(2, 3, 4)) == ["counted as annotated: 3 (Leber é)"]
    assert sent(mask(2, 3, 4), partial={"slices": {"Leber é": {"withdraw": [3]}}}) == ["withdrawn: 3 (Leber é)"]


def test_more_labels_than_a_byte_counts_are_shown_again(studies: StudiesFolder, tmp_path: Path) -> None:
    array = np.zeros(SHAPE, np.uint16)
    array[2].flat[:300] = np.arange(1, 301)
    info = [{"name": f"organ {n}", "idx": n} for n in range(1, 301)]
    write_volume(read_volume(studies.get_image_uri("a")).with_array(array), tmp_path / "many.nrrd")
    studies.submit("a", tmp_path / "many.nrrd", {"label_info": info, "client_id": "one"})
    shown, values = studies.show_again("a", client="one", order=["organ 7"])
    assert len(set(values.values())) == 300
    for n in (1, 7, 300):
        assert np.array_equal(shown.array == values[f"organ {n}"], array == n)


@pytest.mark.parametrize("name", ["background", "Background ", "not_spleen", "foreground_scribbles"])
def test_a_slice_is_about_an_organ(studies: StudiesFolder, name: str) -> None:
    with pytest.raises(InvalidSubmission, match="no label that a slice can be about"):
        studies.submit_slice("a", SliceKey(name, 0, 2), mask(2)[2] > 0, client="one")
    assert not studies.annotations("a").slices


def test_what_few_shot_methods_ask_for(studies: StudiesFolder, write: Callable[..., Path]) -> None:
    assert not len(studies.support()) and not studies.annotations("b").revisions
    submit(studies, mask(2))
    submit(studies, mask(3), image="b")
    support = studies.support()
    assert [(item.image, item.label, item.index) for item in support] == [("a", "Leber é", 2), ("b", "Leber é", 3)]
    assert studies.annotations("a").grid.shape == SHAPE
    again = StudiesFolder(Path(studies.get_image_uri("a")).parent, auto_reload=False)  # a training process
    assert again.support() == support
    Path(studies.get_image_uri("b")).unlink()
    studies.refresh()
    assert studies.support().images == ("a",)
    with pytest.raises(NotKnown, match="'b'"):
        studies.annotations("b")
    Path(studies.get_image_uri("a")).write_bytes(b"broken")
    with pytest.raises(UnreadableVolume) as unreadable:
        studies.annotations("a")
    assert "studies" not in str(unreadable.value)


def test_finished_volumes_reopened_ones_and_their_labels(studies: StudiesFolder) -> None:
    submit(studies, mask(2, 3), tag="final")
    assert studies.get_labeled_images() == ["a"] and studies.get_unlabeled_images() == ["b"]
    assert len(studies.datalist()) == 1
    assert np.array_equal(stored(studies, "final").array, mask(2, 3))
    assert studies.get_label_info("a", "final")["label_info"] == [{"name": "Leber é", "idx": 1}]
    assert studies.get_label_info("a", "final")["partial"]["complete"] is True
    studies.change("a", {"reopen": True})
    assert studies.get_labeled_images() == [] and not studies.datalist() and not studies.get_label_uri("a", "final")
    submit(studies, mask(2, 3, 4))
    assert set(studies.annotations("a").annotated("Leber é")) == {4}
    receipt = studies.finish("a")
    assert receipt.tag == "final" and np.array_equal(stored(studies, "final").array, mask(2, 3, 4))


def test_a_change_of_a_finished_volume_reaches_its_final_label(studies: StudiesFolder) -> None:
    submit(studies, mask(2, 3), tag="final")
    changed = mask(2, 3)
    changed[3, 0, 0] = 1
    submit(studies, changed)
    assert np.array_equal(stored(studies, "final").array, changed) and studies.get_labeled_images() == ["a"]
    before = studies.get_label_info("a", "final")["partial"]["revision"]
    submit(studies, changed)
    assert studies.get_label_info("a", "final")["partial"]["revision"] == before


def test_labels_that_overlap_are_said_when_they_are_finished(studies: StudiesFolder, tmp_path: Path) -> None:
    """A label file holds one label a voxel."""
    grid = read_volume(studies.get_image_uri("a"))
    write_volume(grid.with_array(mask(2)), tmp_path / "liver.nrrd")
    write_volume(grid.with_array((mask(2) > 0).astype(np.uint8) * (np.arange(SHAPE[2]) < 8)), tmp_path / "lesion.nrrd")
    first = studies.submit("a", tmp_path / "liver.nrrd", {"label_info": [{"name": "liver", "idx": 1}]}, tag="final")
    assert "overlap" not in first.answer()["detail"]
    said = studies.submit("a", tmp_path / "lesion.nrrd", {"label_info": [{"name": "lesion", "idx": 1}]}, tag="final")
    assert "covers voxels of others (8 of liver)" in said.answer()["detail"]
    assert "8 of liver" in studies.get_label_info("a", "final")["notes"][0]


def test_final_with_an_explicit_partial_is_not_finished(studies: StudiesFolder) -> None:
    submit(studies, mask(2, 3), tag="final", partial={"slices": {"Leber é": {"annotated": [2]}}})
    assert studies.get_labeled_images() == [] and set(studies.annotations("a").annotated("Leber é")) == {2}


def test_annotations_are_kept_when_the_final_label_cannot_be(
    studies: StudiesFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = FolderFiles.save_label

    def down(self: StudiesFolder, image_id: str, file: str, tag: str, *more: Any) -> str:
        if tag == "final":
            raise ConnectionError("the store is down")
        return keep(self, image_id, file, tag, *more)

    monkeypatch.setattr(FolderFiles, "save_label", down)
    with pytest.raises(ConnectionError):
        submit(studies, mask(2, 3), tag="final")
    assert {2, 3} <= set(studies.annotations("a").annotated("Leber é")) and not studies.annotations("a").complete
    assert np.array_equal(stored(studies, "partial").array, mask(2, 3))
    monkeypatch.undo()
    submit(studies, mask(2, 3), tag="final")
    assert studies.get_labeled_images() == ["a"]


def test_removing_labels_and_images(studies: StudiesFolder) -> None:
    submit(studies, mask(2, 3), tag="final")
    studies.remove_label("a", "final")
    assert studies.get_labeled_images() == [] and studies.annotations("a").revisions
    submit(studies, mask(4))
    studies.remove_label("a", "partial")
    assert not studies.annotations("a").revisions and not studies.get_labels_by_image_id("a")
    submit(studies, mask(2), tag="final")
    studies.remove_image("a")
    assert not len(studies.support()) and studies.list_images() == ["b"]


def test_withdrawing_everything_removes_the_label(studies: StudiesFolder) -> None:
    submit(studies, mask(2))
    receipt = studies.change("a", [{"slices": {"Leber é": {"withdraw": [2]}}}])
    assert receipt.answer()["counted"] == ["withdrawn: 2 (Leber é)"]
    assert not studies.get_labels_by_image_id("a") and studies.status()["completed"] == 0


def test_served_masks_assignments_and_marks(studies: StudiesFolder) -> None:
    studies.serve("a", mask(1, 2, 3) > 0, label="spleen", client="one", prompted=[2])
    studies.assign("a", [5], labels=["spleen"], client="one")
    submit(studies, mask(1, 2, 3, value=2), client_id="one", empty_assigned=True)
    known = studies.annotations("a")
    sources = {index: entry.source.value for index, entry in known.annotated("spleen").items()}
    assert sources == {2: "prompted", 5: "assigned"} and {key.index for key in known.predicted} == {1, 3}
    studies.mark("a", Mark("spleen", 3, Verdict.ACCEPTED, client="one"))
    studies.mark("a", Mark("spleen", 0, Verdict.EMPTY, client="one"))
    assert set(studies.annotations("a").annotated("spleen")) == {0, 2, 3, 5}
    assert np.array_equal(stored(studies, "partial").array, mask(2, 3))


def test_raw_bytes_are_one_voxel_each(studies: StudiesFolder, tmp_path: Path) -> None:
    file = tmp_path / "label.bin"
    file.write_bytes(mask(2).tobytes())
    studies.save_label("a", str(file), "partial", {"label_info": INFO})
    assert np.array_equal(stored(studies, "partial").array > 0, mask(2) > 0)
    file.write_bytes(b"123")
    with pytest.raises(InvalidSubmission, match="2880 voxels"):
        studies.save_label("a", str(file), "partial", {"label_info": INFO})


def test_a_refused_submission_changes_nothing(studies: StudiesFolder, tmp_path: Path) -> None:
    submit(studies, mask(2))
    before = studies.json(), studies.support()
    for array, params in ((mask(3, value=7), {}), (mask(3), {"label_info": "{"}), (mask(3), {"partial": {"axis": 9}})):
        with pytest.raises(InvalidSubmission):
            submit(studies, array, **params)
    moved = Volume(mask(3), np.diag([1.0, 1.0, 4.0, 1.0]))
    write_volume(moved, tmp_path / "moved.nii.gz")
    with pytest.raises(InvalidSubmission, match="grid"):
        studies.save_label("a", str(tmp_path / "moved.nii.gz"), "partial", {"label_info": INFO})
    (tmp_path / "broken.nii.gz").write_bytes(b"broken")
    with pytest.raises(UnreadableVolume) as unreadable:
        studies.save_label("a", str(tmp_path / "broken.nii.gz"), "final", {"label_info": INFO})
    assert str(tmp_path) not in str(unreadable.value)
    assert (studies.json(), studies.support()) == before


class Archive(FolderFiles):
    """A store that keeps its final labels, and may be down."""

    down = False

    def remove_label(self, label_id: str, label_tag: str) -> None:
        if label_tag == "final":
            raise InvalidRequest("an archive removes nothing")
        super().remove_label(label_id, label_tag)

    def get_labeled_images(self, *_: object) -> list[str]:
        if self.down:
            raise ConnectionError
        return list(super().get_labeled_images())

    def status(self) -> dict[str, object]:
        if self.down:
            return {"total": 0, "completed": 0, "label_tags": {}, "trouble": "no answer"}
        return dict(super().status())


def test_an_archive_keeps_its_final_label_while_the_volume_is_open_again(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    (tmp_path / "store").mkdir()
    write(tmp_path / "store" / "a.nii.gz")
    files = Archive(tmp_path / "store", auto_reload=False)
    archive = StudiesDatastore(files, tmp_path / "work", labels=("spleen",))
    submit(archive, mask(2, 3), tag="final")
    assert archive.get_labeled_images() == ["a"]
    archive.change("a", {"reopen": True})
    assert archive.get_unlabeled_images() == ["a"] and archive.get_label_uri("a", "final")
    archive.mark("a", Mark("Leber é", 2, Verdict.ACCEPTED))
    archive.finish("a")
    assert archive.get_labeled_images() == ["a"]
    files.down = True
    assert archive.status()["trouble"] == "no answer"


def test_axes_that_a_viewer_flipped_are_put_back(studies: StudiesFolder, tmp_path: Path) -> None:
    image = read_volume(studies.get_image_uri("a"))
    write_volume(reoriented(image.with_array(mask(2)), "RAI"), tmp_path / "flipped.nrrd")
    studies.save_label("a", str(tmp_path / "flipped.nrrd"), "partial", {"label_info": INFO})
    assert np.array_equal(stored(studies, "partial").array, mask(2))


def test_the_support_set_follows_other_processes(studies: StudiesFolder) -> None:
    submit(studies, mask(2))
    assert studies.support() is not None and len(studies.support()) == 1
    other = StudiesFolder(Path(studies.get_image_uri("a")).parent, auto_reload=False)
    submit(other, mask(3), client_id="another")
    assert [item.index for item in studies.support()] == [2, 3]
    assert studies.annotated_labels() == list(studies.support().labels) == ["Leber é"]


def test_slices_that_next_sample_names_are_assigned(studies: StudiesFolder, embedder: Embedder) -> None:
    class Two(Strategy):
        def __call__(self, request: dict[str, object], datastore: object) -> dict[str, object]:
            return {"id": "a", "slices": [1, 4], "labels": ["spleen"]}

    app = ServerApp.__new__(ServerApp)
    app._datastore, app._strategies = studies, {"two": Two("names two slices")}
    app.images = Images(files=studies.files, embedder=embedder, memory_bytes=10**9)
    found = app.next_sample({"strategy": "two", "client_id": "one"})
    assert found["slices"] == [1, 4] and found["axis"] == 2 and len(found["assignments"]) == 1
    submit(studies, mask(1, value=2), client_id="one")
    spleen = studies.annotations("a").annotated("spleen")
    assert {index: entry.empty for index, entry in spleen.items()} == {1: False}
    submit(studies, mask(1, value=2), client_id="one", empty_assigned=["spleen"])
    spleen = studies.annotations("a").annotated("spleen")
    assert {index: entry.empty for index, entry in spleen.items()} == {1: False, 4: True}


def test_a_fresh_start_loses_no_earlier_slice(studies: StudiesFolder) -> None:
    """A viewer that was closed and opened again shows nothing of what was submitted before."""
    for slices in ((1, 2), (4,), (4, 5)):
        submit(studies, mask(*slices), client_id="user-xyz")
    assert np.array_equal(stored(studies, "partial").array, mask(1, 2, 4, 5))
    submit(studies, mask(5), client_id="user-xyz")  # here slice 4 was on screen, and was erased
    assert np.array_equal(stored(studies, "partial").array, mask(1, 2, 5))
    assert studies.annotations("a").annotated("Leber é")[4].empty


def test_two_readers_do_not_erase_each_other_s_slices(studies: StudiesFolder) -> None:
    for client, slices in (("one", (1,)), ("two", (4,)), ("one", (1, 2)), ("two", (4, 5)), ("one", (1, 2, 3))):
        submit(studies, mask(*slices), client_id=client)
    assert np.array_equal(stored(studies, "partial").array, mask(1, 2, 3, 4, 5))


def test_a_slice_that_is_annotated_is_no_prediction_in_the_answer(studies: StudiesFolder, tmp_path: Path) -> None:
    for slices in ((1, 2), (1, 2, 4)):
        submit(studies, mask(*slices), client_id="one")
    write_volume(read_volume(studies.get_image_uri("a")).with_array(mask(1, 2, 4, 5)), tmp_path / "more.nrrd")
    receipt = studies.submit("a", tmp_path / "more.nrrd", {"label_info": INFO, "client_id": "one"})
    assert receipt.answer()["counted"] == ["counted as annotated: 5 (Leber é)"]


def test_submissions_at_the_same_time(tmp_path: Path, write: Callable[..., Path]) -> None:
    """With the folder's watcher at work, too: no slice and no label's name is lost."""
    (tmp_path / "studies").mkdir()
    write(tmp_path / "studies" / "a.nii.gz")
    studies = StudiesFolder(tmp_path / "studies", auto_reload=True)
    volume = read_volume(studies.get_image_uri("a"))
    failures: list[BaseException] = []

    def work(index: int) -> None:
        try:
            file = tmp_path / f"{index}.nrrd"
            write_volume(volume.with_array(mask(index)), file)
            for _ in range(3):
                studies.save_label("a", str(file), "partial", {"label_info": INFO, "client_id": f"reader {index}"})
                assert "a" in studies.list_images()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(SHAPE[0])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    studies.files._observer.stop()
    assert not failures
    assert set(studies.annotations("a").annotated("Leber é")) == set(range(SHAPE[0]))
    assert np.array_equal(stored(studies, "partial").array, mask(*range(SHAPE[0])))
    assert studies.get_label_info("a", "partial")["label_info"] == [{"name": "Leber é", "idx": 1}]
