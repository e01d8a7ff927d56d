"""The release's samples for lifting: an NPZ in MMPose's manner with one row for each picture.

Known from the official exporter (github.com/dfki-av/simspine, `tools/preprocess_simspine.py`): arrays
``imgname [N]``, ``center [N 2]``, ``scale [N]``, ``part [N K 3]`` (px and visibility), ``S [N K 4]`` (camera
space, metres and visibility), ``S_world [N K 4]`` (the cameras' Z-up world, metres and visibility),
``angles [N 62]`` (as the release's ``kinematics``: degrees), and a pickled dictionary ``metadata``. K is 15,
the keypoints of the reduced release; a file of 37 is taken to have the HDF5's order.

``metadata`` holds constants, and unpickling a file runs whatever it says: it is never read. It is written,
from plain text, numbers and lists, because programs in MMPose's manner ask for it.

The official exporter projects by x = R X + t, yet it stores R (X - t) as camera space. Distances between the
keypoints of one picture are right in it, so root-relative learning is not hurt, but it is no place in front
of the camera. `camera_space_of` tells the two apart and `with_projecting_camera_space` mends it.

Importing this module imports JAX.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from simspine_jax.annotations import SYNTHETIC, SpineTrial
from simspine_jax.errors import ShapeError, UnknownNameError, one_line
from simspine_jax.geometry.cameras import Cameras, project
from simspine_jax.geometry.frames import R_yup_zup
from simspine_jax.io.files import PathLike, malformed, shown
from simspine_jax.io.layout import axes_to_degrees, axes_to_radians
from simspine_jax.io.npz import read_npz, write_npz
from simspine_jax.skeleton import (
    AXIS_NAMES,
    KEYPOINT_NAMES,
    PARENTS,
    REDUCED_NAMES,
    RELEASE_MARKER_NAMES,
    keypoint_name,
    trc_name,
)

BOX_SCALE = 1.2
"""How much larger than the keypoints' box the exporter makes the square around a person."""

BOX_UNIT_PX = 200.0
"""``scale`` is the side of that square over 200 px, as in the MPII data set."""

CAMERA_SPACE_TOLERANCE_M = 1e-3
"""Calibrations and positions in float32 are a hundred times nearer, the two camera spaces metres apart."""

RELEASE_KEYPOINTS: tuple[str, ...] = tuple(keypoint_name(name) for name in RELEASE_MARKER_NAMES)
"""The 37 keypoints in the order of the HDF5 release."""

CameraSpace = Literal["projecting", "official"]
"""R X + t, which projects onto the picture; or R (X - t), which the official exporter stores."""

_ORDERS = {len(REDUCED_NAMES): REDUCED_NAMES, len(RELEASE_KEYPOINTS): RELEASE_KEYPOINTS}
_IMAGE = re.compile(r"([^/]+)/\1_([^/]+)\.([^/.]+)/\1_\2\.\3_([0-9]+)\.[A-Za-z]+")


@dataclass(frozen=True, eq=False)
class Samples:
    """N pictures of one person each; NaN = missing.

    Attributes:
        image_names: [N] ``S1/S1_Walking_1.54138969/S1_Walking_1.54138969_000000.jpg``; frames count from 0.
        keypoint_names: K of `skeleton.KEYPOINT_NAMES`.
        centers: [N 2] px, of the box around the keypoints.
        scales: [N] side of the square box over `BOX_UNIT_PX`.
        pixels: [N K 2] px.
        visible: [N K] inside of the picture by the official exporter's rule, 0 <= x < width; nothing is
            known of occlusion. `geometry.pixels.in_picture` counts half a pixel less and more.
        in_camera: [N K 3] m; which of two camera spaces, `camera_space_of` tells.
        in_world: [N K 3] m, Z-up world of the cameras.
        coordinates: [N 62] rad and m, in the order of `skeleton.AXIS_NAMES`.
        source: what they were made from, if the file says it; `annotations.SYNTHETIC` begins what nobody was
            recorded for. Programs in MMPose's manner pass over it.

    Raises:
        ShapeError: shapes don't agree.
    """

    image_names: NDArray[np.str_]
    keypoint_names: tuple[str, ...]
    centers: NDArray[np.float64]
    scales: NDArray[np.float64]
    pixels: NDArray[np.float64]
    visible: NDArray[np.bool_]
    in_camera: NDArray[np.float64]
    in_world: NDArray[np.float64]
    coordinates: NDArray[np.float64]
    source: str = ""

    def __post_init__(self) -> None:
        n, k = len(self.image_names), len(self.keypoint_names)
        for name, shape in {
            "image_names": (n,), "centers": (n, 2), "scales": (n,), "pixels": (n, k, 2), "visible": (n, k),
            "in_camera": (n, k, 3), "in_world": (n, k, 3), "coordinates": (n, len(AXIS_NAMES)),
        }.items():  # fmt: skip
            if getattr(self, name).shape != shape:
                raise ShapeError(f"{name} has the shape {getattr(self, name).shape}; valid is {shape}")


ROWS: tuple[str, ...] = tuple(
    name for name in Samples.__dataclass_fields__ if name not in ("keypoint_names", "source")
)
"""The fields of `Samples` that have a row for each picture."""


@dataclass(frozen=True)
class ImageName:
    """What the name of a picture says."""

    subject: str
    stem: str
    camera: str
    frame: int

    @property
    def path(self) -> str:
        """As the exporter writes it."""
        prefix = f"{self.subject}_{self.stem}.{self.camera}"
        return f"{self.subject}/{prefix}/{prefix}_{self.frame:06d}.jpg"

    @classmethod
    def of(cls, path: str) -> ImageName:
        """Inverse of `path`.

        Raises:
            ShapeError: the text has another form.
        """
        match = _IMAGE.fullmatch(path)
        if match is None:
            valid = cls("S1", "Walking_1", "54138969", 0).path
            raise ShapeError(f"the image name is {shown(path, 200)}; valid is such as {valid}")
        return cls(match[1], match[2], match[3], int(match[4]))


def keypoint_boxes(pixels: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest corner [N 2] px of the keypoints [N K 2] px of each picture; NaN without any."""
    low = np.where(np.isnan(pixels), np.inf, pixels).min(axis=1)
    high = np.where(np.isnan(pixels), -np.inf, pixels).max(axis=1)
    seen = np.isfinite(low)
    return np.where(seen, low, np.nan), np.where(seen, high, np.nan)


def person_boxes(
    pixels: NDArray[np.float64], sizes: NDArray[np.float64], scale: float = BOX_SCALE
) -> NDArray[np.float64]:
    """Boxes [N 4] x, y, width, height px around keypoints [N K 2] px, ``scale`` times as large.

    They are cut at the edges of pictures of ``sizes`` [N 2] px, where these are known (not NaN); edges are at
    0 and ``sizes``, as COCO counts.
    """
    low, high = keypoint_boxes(pixels)
    margin = (scale - 1) / 2 * (high - low)
    edge = np.where(np.isnan(sizes), np.inf, sizes)
    corner = np.where(np.isnan(sizes), -np.inf, 0.0)
    low, high = np.clip(low - margin, corner, edge), np.clip(high + margin, corner, edge)
    return np.concatenate([low, high - low], axis=1)


def samples_of(trial: SpineTrial, cameras: Cameras, keypoint_names: Sequence[str] = REDUCED_NAMES) -> Samples:
    """Samples of a trial, camera after camera, each with its frames; camera space projects.

    Args:
        trial: T frames in the Y-up ground frame.
        cameras: V, in the Z-up world.
        keypoint_names: of the trial's keypoints, for the file 15 or 37 in their order there.

    Returns:
        V times T rows, all but the pixels in float64; these are projected in JAX's precision. They are NaN
        and not visible where the keypoint is missing or behind the camera.

    Raises:
        UnknownNameError: there is no such keypoint.
    """
    for name in keypoint_names:
        if name not in KEYPOINT_NAMES:
            raise UnknownNameError("Keypoint", name, "the vocabulary", KEYPOINT_NAMES)
    world = trial.keypoints[:, [KEYPOINT_NAMES.index(name) for name in keypoint_names]] @ R_yup_zup
    rows = (len(cameras.names) * trial.n_frames, len(keypoint_names))
    pixels = np.asarray(project(cameras, jnp.asarray(world)).keypoints, np.float64)
    pixels = np.moveaxis(pixels, 2, 0).reshape(*rows, 2)  # [T K V 2] to [V T K 2]
    sizes = np.repeat(np.asarray(cameras.sizes, np.float64), trial.n_frames, axis=0)[:, None]
    outside = (pixels < 0) | (pixels >= sizes)  # a size that is not known, NaN, has nothing outside
    low = np.where(np.isnan(pixels), np.inf, pixels).min(axis=1)
    high = np.where(np.isnan(pixels), -np.inf, pixels).max(axis=1)
    seen = np.isfinite(low)
    low, high = np.where(seen, low, np.nan), np.where(seen, high, np.nan)
    stem = trial.name.removeprefix(trial.subject.replace(" ", "_") + "_")
    names = [
        ImageName(trial.subject, stem, camera, frame).path
        for camera in cameras.names
        for frame in range(trial.n_frames)
    ]
    rotations = np.asarray(cameras.rotations, np.float64)[:, None, None]
    local = (rotations @ world[..., None])[..., 0] + np.asarray(cameras.translations)[:, None, None]
    return Samples(
        np.array(names, str),
        tuple(keypoint_names),
        (low + high) / 2,
        BOX_SCALE * (high - low).max(axis=-1) / BOX_UNIT_PX,
        pixels,
        np.logical_not((outside | np.isnan(pixels)).any(axis=-1)),
        local.reshape(*rows, 3),
        np.tile(world, (len(cameras.names), 1, 1)),
        np.tile(trial.coordinates, (len(cameras.names), 1)),
    )


def joined(samples: Sequence[Samples]) -> Samples:
    """The rows of several samples, one after the other.

    Raises:
        ShapeError: there are none, or their keypoints differ.
    """
    if not samples or len({part.keypoint_names for part in samples}) > 1:
        raise ShapeError("samples of the same keypoints can be joined; valid is at least one")
    arrays: dict[str, Any] = {name: np.concatenate([getattr(s, name) for s in samples]) for name in ROWS}
    # One that is synthetic makes the whole not recorded.
    sources = sorted((part.source for part in samples), key=lambda text: not text.startswith(SYNTHETIC))
    return replace(samples[0], **arrays, source=sources[0])


def camera_space_of(samples: Samples, cameras: Mapping[str, Cameras]) -> CameraSpace:
    """Which camera space samples have, by the cameras of each subject.

    Raises:
        ShapeError: it is neither of the two within `CAMERA_SPACE_TOLERANCE_M`, or not one for all rows.
        UnknownNameError: a picture's subject or camera is not there.
    """
    rotated, translations = _views(samples, cameras)
    for space, shift in _SHIFTS.items():
        off = np.abs(samples.in_camera - (rotated + shift(*translations)[:, None]))
        if not (off > CAMERA_SPACE_TOLERANCE_M).any():  # missing ones are not off
            return space
    raise ShapeError("in_camera is neither R X + t nor R (X - t) of in_world; valid is one for all rows")


def with_projecting_camera_space(samples: Samples, cameras: Mapping[str, Cameras]) -> Samples:
    """Samples with ``in_camera`` = R X + t, whichever of the two they have; raises as `camera_space_of`."""
    if camera_space_of(samples, cameras) == "projecting":
        return samples
    rotated, translations = _views(samples, cameras)
    return replace(samples, in_camera=rotated + _SHIFTS["projecting"](*translations)[:, None])


def read_samples_npz(path: PathLike) -> Samples:
    """Read an NPZ of the release without its pickled ``metadata``; see the module for what is in it.

    Visibility is that of ``part``. Angles are taken to be degrees, which the exporter copies.

    Raises:
        FileFormatError: it is no such file, or damaged.
    """
    arrays = read_npz(path, without=("metadata",))
    source = arrays.get("source")
    wanted = {"center": 2, "scale": 1, "part": 3, "S": 3, "S_world": 3, "angles": 2, "imgname": 1}
    for name, rank in wanted.items():
        array = arrays.get(name)
        kinds = "U" if name == "imgname" else "f"
        if array is None or array.ndim != rank or array.dtype.kind not in kinds:
            held = "is missing" if array is None else f"is {array.dtype} of the shape {array.shape}"
            valid = f"{'text' if kinds == 'U' else 'floating point numbers'} in {rank} dimensions"
            raise malformed(path, None, f"the array {name} {held}", valid)
    part, count = np.asarray(arrays["part"], np.float64), arrays["part"].shape[1]
    if count not in _ORDERS or part.shape[2] != 3:
        raise malformed(path, None, f"part has the shape {part.shape}", "[N 15 3] or [N 37 3]")
    if any(arrays[name].shape[2] != 4 for name in ("S", "S_world")) or arrays["angles"].shape[1] != 62:
        raise malformed(path, None, "S, S_world or angles are too narrow or wide", "4 and 62 numbers")
    try:
        return Samples(
            arrays["imgname"],
            _ORDERS[count],
            np.asarray(arrays["center"], np.float64),
            np.asarray(arrays["scale"], np.float64),
            part[..., :2],
            part[..., 2] > 0,
            np.asarray(arrays["S"], np.float64)[..., :3],
            np.asarray(arrays["S_world"], np.float64)[..., :3],
            axes_to_radians(np.asarray(arrays["angles"], np.float64)),
            str(source[()]) if source is not None and source.ndim == 0 and source.dtype.kind == "U" else "",
        )
    except ShapeError as error:
        raise malformed(path, None, one_line(str(error)).split(";")[0], "as many rows in all") from None


def write_samples_npz(path: PathLike, samples: Samples) -> None:
    """Write the NPZ of the release, all of it from memory as the official exporter does.

    Raises:
        ShapeError: the keypoints are not the 15 or 37 in the file's order.
        SimspineError: the file can't be written.
    """
    if samples.keypoint_names not in _ORDERS.values():
        raise ShapeError(f"the keypoints are {samples.keypoint_names}; valid are those of the release")
    names = samples.keypoint_names
    parents = [PARENTS[KEYPOINT_NAMES.index(name)] for name in names]
    metadata = {
        "root_name": "Hip",
        "root_index": names.index("hip"),
        "joint_names": [trc_name(name) for name in names],
        "param_names": list(AXIS_NAMES),
        "parent_ids": [names.index(KEYPOINT_NAMES[p]) if p >= 0 else -1 for p in parents],
    }
    visible = samples.visible[..., None].astype(np.float64)
    arrays: dict[str, NDArray[Any]] = {
        "metadata": np.array(metadata, object),
        "imgname": samples.image_names,
        "center": samples.centers,
        "scale": samples.scales,
        "part": np.concatenate([samples.pixels, visible], axis=-1),
        "S": np.concatenate([samples.in_camera, visible], axis=-1),
        "S_world": np.concatenate([samples.in_world, visible], axis=-1),
        "angles": axes_to_degrees(samples.coordinates),
    }
    if samples.source:
        arrays["source"] = np.array(samples.source)
    write_npz(path, arrays)


_SHIFTS: Mapping[CameraSpace, Callable[..., NDArray[np.float64]]] = {
    "projecting": lambda translations, turned: translations,
    "official": lambda translations, turned: -turned,
}
"""What is added to R X in either camera space, by t and R t, each [N 3]."""


def _views(
    samples: Samples, cameras: Mapping[str, Cameras]
) -> tuple[NDArray[np.float64], tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """R X of each row [N K 3], and t and R t of its camera [N 3]."""
    rotations = np.empty((len(samples.image_names), 3, 3))
    translations = np.empty((len(samples.image_names), 3))
    views, row_views = np.unique(
        [name.rpartition("/")[0] for name in samples.image_names.tolist()], return_inverse=True
    )
    for view in range(len(views)):
        rows = row_views == view
        named = ImageName.of(str(samples.image_names[rows][0]))
        if named.subject not in cameras:
            raise UnknownNameError("Subject", named.subject, "the calibrations", cameras)
        camera = cameras[named.subject].select([named.camera])
        rotations[rows] = np.asarray(camera.rotations, np.float64)
        translations[rows] = np.asarray(camera.translations, np.float64)
    rotated = np.einsum("nij,nkj->nki", rotations, samples.in_world)
    return rotated, (translations, np.einsum("nij,nj->ni", rotations, translations))
