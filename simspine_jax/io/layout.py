"""Where the files of a release lie, what they are called, and which of their numbers are degrees."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simspine_jax.annotations import file_name
from simspine_jax.io.files import PathLike
from simspine_jax.skeleton import AXIS_NAMES

HDF5_NAME = "simspine.h5"
"""What the release calls its HDF5 file."""

MARKER_FOLDERS = ("markers", "positions")
"""Folder of the TRC files: the official code writes the first, the official documentation says the second."""

# Three kinds of coordinates in OpenSim: rotational ones, which it alone converts; translational ones; and
# those it calls coupled, here the patella's, which stay in radians in a file with inDegrees=yes.
_NEVER_IN_DEGREES = (
    "pelvis_tx", "pelvis_ty", "pelvis_tz", "Abs_t1", "Abs_t2", "knee_angle_r_beta", "knee_angle_l_beta",
)  # fmt: skip

DEGREE_AXES: NDArray[np.bool_] = np.array([name not in _NEVER_IN_DEGREES for name in AXIS_NAMES])
"""bool [62]: axes that OpenSim writes in degrees where it writes degrees."""
DEGREE_AXES.setflags(write=False)

_REPETITION = re.compile(r"(.*[^_])_([0-9]+)")
_DIGITS = re.compile(r"([0-9]+)")


def axes_to_degrees(coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Axes [..., 62] in radians and metres as OpenSim's files have them, degrees where it has degrees."""
    return np.where(DEGREE_AXES, np.rad2deg(coordinates), coordinates)


def axes_to_radians(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of `axes_to_degrees`, within two units in the last place."""
    return np.where(DEGREE_AXES, np.deg2rad(table), table)


def action_of(stem: str) -> str:
    """The action that a file or group is called after: ``Walking_1`` is ``Walking 1``."""
    match = _REPETITION.fullmatch(stem)
    return f"{match[1]} {match[2]}" if match else stem


def natural_key(text: str) -> tuple[tuple[bool, int, str], ...]:
    """Sorts S9 before S11."""
    return tuple((part.isdigit(), int(part) if part.isdigit() else 0, part) for part in _DIGITS.split(text))


@dataclass(frozen=True)
class ReleaseLayout:
    """Paths of the official release's files, and of those that `simspine simulate` writes beside them.

    Blanks in subjects and actions are underscores in paths. Nothing here touches the disk.

    Attributes:
        root: the folder of all.
        marker_folder: of `MARKER_FOLDERS`.
    """

    root: Path
    marker_folder: str = MARKER_FOLDERS[0]

    @classmethod
    def at(cls, root: PathLike) -> ReleaseLayout:
        """The layout of a folder, with that of `MARKER_FOLDERS` that exists there, else the first."""
        found = [name for name in MARKER_FOLDERS if (Path(root) / name).is_dir()]
        return cls(Path(root), *found[:1])

    @property
    def hdf5(self) -> Path:
        """All trials in one file."""
        return self.root / HDF5_NAME

    def cameras(self, subject: str) -> Path:
        """Calibration of a subject's cameras."""
        return self.root / "cameras" / f"Calib_{_plain(subject)}.toml"

    def model(self, subject: str) -> Path:
        """The subject's scaled OpenSim model."""
        return self.root / "models" / f"{_plain(subject)}.osim"

    def markers(self, subject: str, action: str) -> Path:
        """The keypoints of a trial as TRC."""
        return self.root / self.marker_folder / _plain(subject) / f"{file_name(subject, action)}.trc"

    def kinematics(self, subject: str, action: str) -> Path:
        """The kinematic axes of a trial as .mot."""
        name = file_name(subject, action)
        return self.root / "kinematics" / _plain(subject) / name / f"{name}.mot"

    def trial(self, subject: str, action: str) -> Path:
        """All that is known of a trial, without loss; see `simspine_jax.io.trials`."""
        return self.root / "trials" / _plain(subject) / f"{file_name(subject, action)}.npz"

    def quality(self, subject: str, action: str) -> Path:
        """Findings and repairs of a trial as a table."""
        return self.root / "quality" / _plain(subject) / f"{file_name(subject, action)}.csv"


def _plain(subject: str) -> str:
    return subject.replace(" ", "_")
