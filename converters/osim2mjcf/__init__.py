"""OpenSim model -> MJCF and the exact coordinate map, without loss."""

from osim2mjcf.convert import convert

__all__ = ["convert"]
