"""The MONAI Label app as a folder, for ``monailabel start_server --app``."""
