"""The planted volumes, as fixtures."""

from planted_volume import ct, oblique, volume

__all__ = ["ct", "oblique", "volume"]
