"""Reports and presentation states of a series, as another program would write them: by highdicom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from highdicom.sr import (
    ComprehensiveSR,
    FindingSite,
    ImageRegion,
    Measurement,
    MeasurementReport,
    ObservationContext,
    ObserverContext,
    PersonObserverIdentifyingAttributes,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    SourceImageForRegion,
    TrackingIdentifier,
)
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid


def images(folder: Path) -> list[pydicom.Dataset]:
    """In the order of their slices along the stack."""
    found = [pydicom.dcmread(path) for path in folder.glob("*.dcm")]
    normal = np.cross(*np.reshape(found[0].ImageOrientationPatient, (2, 3)).astype(float))
    return sorted(found, key=lambda one: float(np.dot(normal, np.array(one.ImagePositionPatient, float))))


def report(series: Sequence[pydicom.Dataset], regions: Sequence[tuple[str, int, np.ndarray]]) -> pydicom.Dataset:
    """TID 1500 with (graphic type, slice, points as (column, row) from the first pixel's centre)."""
    groups = [
        PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=TrackingIdentifier(uid=generate_uid(), identifier=f"region {number}"),
            referenced_region=ImageRegion(
                graphic_type=kind,
                graphic_data=points + 0.5,
                source_image=SourceImageForRegion(series[k].SOPClassUID, series[k].SOPInstanceUID),
            ),
            finding_sites=[FindingSite(anatomic_location=codes.SCT.Liver)],
            measurements=[Measurement(name=codes.SCT.Length, value=23.14, unit=codes.UCUM.Millimeter)],
        )
        for number, (kind, k, points) in enumerate(regions)
    ]
    person = ObserverContext(codes.DCM.Person, PersonObserverIdentifyingAttributes(name="Test^Reader"))
    content = MeasurementReport(
        observation_context=ObservationContext(observer_person_context=person),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=groups,
    )
    return ComprehensiveSR(
        evidence=list(series),
        content=content[0],
        series_number=100,
        series_instance_uid=generate_uid(),
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="test",
    )


def presentation_state(
    series: Sequence[pydicom.Dataset], graphics: Sequence[tuple[str, int, np.ndarray]]
) -> pydicom.Dataset:
    """GSPS with the same, and an arrow (whose two ends are the points) for the type ARROW."""
    layer = hd.pr.GraphicLayer(layer_name="MEASURED", order=1)
    annotations = []
    for kind, k, points in graphics:
        simple = [points] if kind != "ARROW" else [points, points[1] + np.array([[-2.0, 0], [0, 0], [0, 2]])]
        annotation = hd.pr.GraphicAnnotation(
            referenced_images=[series[k]],
            graphic_layer=layer,
            graphic_objects=[
                hd.pr.GraphicObject(kind if kind != "ARROW" else "POLYLINE", graphic_data=one + 0.5, units="PIXEL")
                for one in simple
            ],
        )
        if kind == "ARROW":
            compound = pydicom.Dataset()
            compound.CompoundGraphicType, compound.CompoundGraphicUnits = "ARROW", "PIXEL"
            compound.CompoundGraphicInstanceID, compound.GraphicDimensions, compound.NumberOfGraphicPoints = 1, 2, 2
            compound.GraphicData = (points + 0.5).ravel().tolist()
            annotation.CompoundGraphicSequence = [compound]
            for one in annotation.GraphicObjectSequence:
                one.CompoundGraphicInstanceID = 1
        annotations.append(annotation)
    return hd.pr.GrayscaleSoftcopyPresentationState(
        referenced_images=list(series),
        series_instance_uid=generate_uid(),
        series_number=101,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="test",
        manufacturer_model_name="test",
        software_versions="1",
        device_serial_number="1",
        content_label="MEASURED",
        graphic_layers=[layer],
        graphic_annotations=annotations,
    )
