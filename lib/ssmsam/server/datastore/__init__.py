"""MONAI Label's datastores: a folder of studies, and a DICOMweb archive."""
