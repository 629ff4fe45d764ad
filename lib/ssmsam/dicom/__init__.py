"""DICOM: series in, segmentations out, read back and checked, from folders and from DICOMweb archives."""
