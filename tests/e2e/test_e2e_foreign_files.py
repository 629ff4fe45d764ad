"""Files that other programs wrote, through a real archive and our datastore."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import RLELossless
from sample_cases import SAMPLES
from serving import free_port
from stored_segs import remove_series

from ssmsam.cli.pacs import INSTALL, Orthanc, is_installed, running_orthanc
from ssmsam.dicom.web import DicomStore, StoreAccess
from ssmsam.reading import read_volume
from ssmsam.server.datastore.dicomweb import DicomWebArchive

DATA = Path(os.environ.get("SSMSAM_DATA", "../shared/data")) / "dicom_seg_rt"
DCMQI = DATA / "dcmqi" / "data" / "segmentations"
needs_fixtures = pytest.mark.skipif(not DATA.is_dir(), reason=f"no fixtures at {DATA}; SSMSAM_DATA names their folder")


@pytest.fixture
def empty_archive(tmp_path: Path) -> Iterator[Orthanc]:
    if not is_installed():
        pytest.skip(f"Orthanc with its DICOMweb plugin is not installed: {INSTALL}")
    with running_orthanc(tmp_path / "orthanc", port=free_port()) as running:
        yield running


def studies_of(archive: Orthanc, folder: Path) -> DicomWebArchive:
    store = DicomStore(StoreAccess(url=archive.url))
    return DicomWebArchive(store, folder=folder, filters={"Modality": ["CT", "MR"]}, quota_bytes=10**9, fresh_s=0.0)


def filled(mask: np.ndarray) -> dict[int, int]:
    values, counts = np.unique(mask[mask > 0], return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


@needs_fixtures
def test_a_seg_by_dcmqi_is_the_label_of_its_series(empty_archive: Orthanc, tmp_path: Path) -> None:
    empty_archive.upload(sorted((DCMQI / "ct-3slice").glob("*.dcm")))
    studies = studies_of(empty_archive, tmp_path / "local")
    (image,) = studies.list_images()
    assert studies.get_unlabeled_images() == [image]
    empty_archive.upload([DCMQI / "liver.dcm"])
    assert studies.get_unlabeled_images() == []
    mask = read_volume(studies.get_label_uri(image, "final"))
    (entry,) = studies.get_label_info(image, "final")["label_info"]
    assert entry["name"] == "Liver"
    truth = read_volume(DCMQI / "liver_seg.nrrd")
    places = np.rint(mask.grid.to_ijk(truth.grid.to_lps(np.argwhere(truth.array)[:, ::-1]))).astype(int)
    assert filled(mask.array) == {entry["idx"]: len(places)}
    assert (mask.array[tuple(places.T[::-1])] == entry["idx"]).all()


@needs_fixtures
def test_a_foreign_seg_removed_from_the_archive_frees_its_image(empty_archive: Orthanc, tmp_path: Path) -> None:
    empty_archive.upload([*sorted((DCMQI / "ct-3slice").glob("*.dcm")), DCMQI / "liver.dcm"])
    studies = studies_of(empty_archive, tmp_path / "local")
    (image,) = studies.get_labeled_images()
    remove_series(empty_archive, str(pydicom.dcmread(DCMQI / "liver.dcm").SeriesInstanceUID))
    assert studies.get_unlabeled_images() == [image]


def test_a_compressed_series_is_read_as_it_was(empty_archive: Orthanc, tmp_path: Path) -> None:
    series = SAMPLES / "abdomen_dicom" / "ct_01"
    packed = tmp_path / "packed"
    packed.mkdir()
    for file in sorted(series.glob("*.dcm")):
        header = pydicom.dcmread(file)
        header.compress(RLELossless, generate_instance_uid=False)
        header.save_as(packed / file.name)
    empty_archive.upload(sorted(packed.iterdir()))
    studies = studies_of(empty_archive, tmp_path / "local")
    (image,) = studies.list_images()
    fetched = Path(studies.get_image_uri(image))
    assert pydicom.dcmread(next(fetched.iterdir())).file_meta.TransferSyntaxUID == RLELossless
    assert (read_volume(fetched).array == read_volume(series).array).all()
