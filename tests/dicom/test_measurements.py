"""What others measured comes back as prompts, on its slice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from drawn_measurements import images, presentation_state, report
from test_dicom_seg import series_of

from ssmsam.dicom.measurements import Measurement, as_prompts, measurement_files, measurements
from ssmsam.dicom.series import find_series
from ssmsam.server.clients.prompts import read_prompts
from ssmsam.volume.volume import Volume

LINE = np.array([[1.0, 2.0], [5.0, 4.0]])
POLYGON = np.array([[1.0, 1.0], [5.0, 1.0], [5.0, 4.0], [1.0, 1.0]])
CIRCLE = np.array([[3.0, 3.0], [5.0, 3.0]])
ELLIPSE = np.array([[1.0, 3.0], [5.0, 3.0], [3.0, 2.0], [3.0, 4.0]])
POINT = np.array([[2.0, 3.0]])


@pytest.fixture(params=["LPS", "RAS", "LPI"])
def volume(request: pytest.FixtureRequest, tmp_path: Path, ct: Volume) -> Volume:
    return series_of(ct, tmp_path / "series", codes=request.param)


def test_reports_and_states_say_where(volume: Volume, tmp_path: Path) -> None:
    series = images(tmp_path / "series")
    objects = [
        report(series, [("POLYLINE", 1, LINE), ("POLYLINE", 2, POLYGON), ("CIRCLE", 0, CIRCLE), ("POINT", 2, POINT)]),
        presentation_state(series, [("POLYLINE", 0, LINE), ("ARROW", 2, LINE), ("ELLIPSE", 1, ELLIPSE)]),
    ]
    found = measurements(objects, find_series(tmp_path / "series"))
    assert [one.slice for one in found] == sorted(one.slice for one in found)
    said = {(one.source, one.kind, one.slice): one for one in found}
    assert set(said) == {
        ("SR", "line", 1), ("SR", "polygon", 2), ("SR", "polygon", 0), ("SR", "point", 2),
        ("PR", "line", 0), ("PR", "arrow", 2), ("PR", "polygon", 1),
    }  # fmt: skip
    np.testing.assert_allclose(said["SR", "line", 1].points, LINE, atol=1e-4)
    np.testing.assert_allclose(said["SR", "polygon", 2].points, POLYGON[:-1], atol=1e-4)
    np.testing.assert_allclose(said["SR", "point", 2].points, POINT, atol=1e-4)
    np.testing.assert_allclose(said["PR", "line", 0].points, LINE, atol=1e-4)
    np.testing.assert_allclose(said["PR", "arrow", 2].points, LINE[::-1], atol=1e-4, err_msg="the tip is at its head")
    round_it = said["SR", "polygon", 0].points - CIRCLE[0]
    np.testing.assert_allclose(np.hypot(*round_it.T), 2, atol=1e-4)
    np.testing.assert_allclose(said["PR", "polygon", 1].points.max(axis=0), [5, 4], atol=1e-4)
    assert "Length 23.14 mm" in said["SR", "line", 1].text
    assert "Liver" in said["SR", "line", 1].text


def test_every_measurement_is_a_request(volume: Volume, tmp_path: Path) -> None:
    series = images(tmp_path / "series")
    drawn = [("POLYLINE", 1, LINE), ("POLYLINE", 1, POLYGON), ("ELLIPSE", 1, ELLIPSE), ("POINT", 1, POINT)]
    for one in measurements([report(series, drawn)], find_series(tmp_path / "series")):
        request = read_prompts({"label": "liver", **as_prompts(one)}, grid=volume.grid, dimension=2)
        assert request.current == 1
        assert not request.slices[1].empty


def test_what_belongs_elsewhere_is_left_out(tmp_path: Path, ct: Volume, caplog: pytest.LogCaptureFixture) -> None:
    series_of(ct, tmp_path / "series")
    other = ct.with_array(ct.array[::-1].copy())
    series_of(other, tmp_path / "other")
    far = np.array([[1.0, 2.0], [500.0, 4.0]])
    strange = presentation_state(images(tmp_path / "series"), [("POLYLINE", 0, LINE)])
    del strange.GraphicAnnotationSequence[0].GraphicObjectSequence[0].GraphicData
    on_screen = presentation_state(images(tmp_path / "series"), [("POLYLINE", 0, LINE)])
    on_screen.GraphicAnnotationSequence[0].GraphicObjectSequence[0].GraphicAnnotationUnits = "DISPLAY"
    objects = [
        report(images(tmp_path / "other"), [("POLYLINE", 1, LINE)]),
        report(images(tmp_path / "series"), [("POLYLINE", 1, far)]),
        strange,
        on_screen,
        pydicom.Dataset(),
    ]
    assert measurements(objects, find_series(tmp_path / "series")) == []
    assert "not as DICOM has it" in caplog.text


def test_lines_in_space_are_on_the_slice_that_they_lie_on(volume: Volume, tmp_path: Path) -> None:
    series = images(tmp_path / "series")
    made = report(series, [("POLYLINE", 1, LINE)])

    def in_space(item: pydicom.Dataset) -> None:
        for child in item.get("ContentSequence", ()):
            if child.ValueType == "SCOORD":
                child.ValueType = "SCOORD3D"
                lps = volume.grid.to_lps(np.column_stack([LINE, [1, 1]]))
                child.GraphicData = lps.ravel().tolist()
            in_space(child)

    in_space(made)
    (found,) = measurements([made], find_series(tmp_path / "series"))
    assert found.slice == 1
    np.testing.assert_allclose(found.points, LINE, atol=1e-3)


def test_files_beside_the_images_are_found(tmp_path: Path, ct: Volume) -> None:
    series_of(ct, tmp_path / "series")
    made = report(images(tmp_path / "series"), [("POLYLINE", 1, LINE)])
    made.save_as(tmp_path / "series" / "report.dcm", write_like_original=False)
    (found,) = measurements(measurement_files(tmp_path / "series"), find_series(tmp_path / "series"))
    assert isinstance(found, Measurement)
    assert found.slice == 1
