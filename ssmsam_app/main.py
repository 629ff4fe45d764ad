"""The MONAI Label app: which tasks there are, under which names, is in ``ssmsam.server.app_folder``."""

from ssmsam.server.app_folder.main import SsmsamApp

__all__ = ["SsmsamApp"]
