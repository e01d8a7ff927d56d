"""Clips: what one record of the SimSpine dataset holds, whatever it was made from.

A clip is up to `MAX_CLIP_FRAMES` consecutive frames of one trial, with its cameras once. Metres, radians,
seconds and pixels. Positions are in the model's ground frame (Y up), and so are the cameras: a point X of
``keypoints_3d`` lies at ``x = R X + t`` in a camera's frame (x right, y down, z forward), with R and t of the
same clip. Every array that can miss something has a mask, True where it is known; values are NaN elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from simspine_jax.annotations import N_LEVELS, SpineTrial
from simspine_jax.errors import ShapeError, UnknownNameError
from simspine_jax.geometry.cameras import (
    TANGENTIAL_FACTOR,
    Cameras,
    normalised_from_pixels,
    project,
    undistort,
)
from simspine_jax.geometry.frames import R_yup_zup
from simspine_jax.geometry.pixels import in_picture
from simspine_jax.schema import RecordField, fields_of, record_field
from simspine_jax.skeleton import AXIS_NAMES, KEYPOINT_NAMES

MAX_CLIP_FRAMES = 500
"""Ten seconds at 50 Hz: records of this length read fastest, and one compiled shape serves all of them."""

BODY_NAMES: tuple[str, ...] = (
    "pelvis", "sacrum", "femur_r", "patella_r", "tibia_r", "talus_r", "calcn_r", "toes_r", "femur_l",
    "patella_l", "tibia_l", "talus_l", "calcn_l", "toes_l", "lumbar5", "lumbar4", "lumbar3", "lumbar2",
    "lumbar1", "torso", "head", "Abdomen", "humerus_r", "ulna_r", "radius_r", "hand_r", "humerus_l", "ulna_l",
    "radius_l", "hand_l",
)  # fmt: skip
"""Bodies of the spine model, in the order of its `SpineModel.body_names`."""

N_BODIES = len(BODY_NAMES)
"""How many they are."""

FOLD = 1e-2
"""How far a ray may pass from its undistorted picture on the plane one metre in front of a camera, m."""

SPLITS: Mapping[str, tuple[str, ...]] = {"train": ("S1", "S5", "S6", "S7", "S8"), "test": ("S9", "S11")}
"""Subjects of the paper's splits."""

CURVATURE_NAMES: tuple[str, ...] = ("lordosis", "kyphosis", "body_lordosis", "body_kyphosis")
"""The columns of ``curvature``: by keypoints and by body frames."""

NO_CAMERA = "none"
"""The view of a trial without cameras: nothing is known of it. TFDS can't store an array without views."""

_K, _A = len(KEYPOINT_NAMES), len(AXIS_NAMES)


@dataclass(frozen=True, eq=False)
class Clip:
    """T frames of one trial seen by V cameras; `CLIP_FIELDS` says what each field holds.

    Raises:
        ShapeError: an array has another shape.
    """

    subject: str = record_field("text", doc="Subject, such as S1.")
    action: str = record_field("text", doc="Action with its repetition, such as 'Walking 1'.")
    source: str = record_field("text", doc="What the trial was made from.")
    is_synthetic: bool = record_field("bool", doc="Whether nobody was recorded for it.")
    first_frame: int = record_field("int32", doc="How many frames of its trial come before it.")
    rate_hz: float = record_field("float32", doc="Frames per second.")
    height_m: float = record_field("float32", doc="The subject's height, m; NaN where it is not known.")
    mass_kg: float = record_field("float32", doc="The subject's mass, kg; NaN where it is not known.")
    scale_factors: NDArray[np.float32] = record_field(
        "float32", N_BODIES, 3, doc="Of each of BODY_NAMES, forward, up and right; NaN: not known."
    )
    times: NDArray[np.float64] = record_field("float64", "T", doc="Since the trial began, s.")
    frames: NDArray[np.int32] = record_field(
        "int32", "T", doc="Number of each frame in its trial, as the source counts them; gaps are possible."
    )
    keypoints_3d: NDArray[np.float32] = record_field(
        "float32", "T", _K, 3, doc="The annotation: 37 keypoints in the ground frame (Y up), m."
    )
    keypoints_3d_mask: NDArray[np.bool_] = record_field("bool", "T", _K, doc="Where keypoints_3d is known.")
    kinematics: NDArray[np.float32] = record_field(
        "float32", "T", _A, doc="The annotation: 62 kinematic axes, rad and m (pelvis and abdomen)."
    )
    kinematics_mask: NDArray[np.bool_] = record_field("bool", "T", _A, doc="Where kinematics is known.")
    vertebral_rotations: NDArray[np.float32] = record_field(
        "float32", "T", N_LEVELS, 3,
        doc="Flexion/extension, lateral bending, axial rotation from L5-S1 up to the neck, rad.",
    )  # fmt: skip
    vertebral_rotations_mask: NDArray[np.bool_] = record_field(
        "bool", "T", N_LEVELS, doc="Where vertebral_rotations is known."
    )
    curvature: NDArray[np.float32] = record_field(
        "float32", "T", 4, doc="Lordosis (L1-S1), kyphosis (T3-T12) by keypoints, the same by bodies, rad."
    )
    curvature_mask: NDArray[np.bool_] = record_field("bool", "T", 4, doc="Where curvature is known.")
    quality: NDArray[np.int32] = record_field(
        "int32", "T", doc="Flags of simspine_jax.annotations.Quality; 0 is good, 32 a repaired frame."
    )
    camera_names: tuple[str, ...] = record_field("text", "V", doc="Cameras, in the order of all views.")
    camera_rotations: NDArray[np.float64] = record_field("float64", "V", 3, 3, doc="R: ground to camera.")
    camera_translations: NDArray[np.float64] = record_field("float64", "V", 3, doc="t, m: x = R X + t.")
    camera_focal_lengths: NDArray[np.float64] = record_field("float64", "V", 2, doc="px.")
    camera_principal_points: NDArray[np.float64] = record_field("float64", "V", 2, doc="px.")
    camera_skews: NDArray[np.float64] = record_field(
        "float64", "V", doc="Entry of K between focal lengths, px."
    )
    camera_distortion: NDArray[np.float64] = record_field("float64", "V", 8, doc="k1 k2 p1 p2 k3 k4 k5 k6.")
    camera_sizes: NDArray[np.float64] = record_field(
        "float64", "V", 2, doc="Width and height, px; NaN: unknown."
    )
    camera_distortion_model: str = record_field(
        "text", doc="'opencv', or 'h36m': Human3.6M's, whose tangential terms lack OpenCV's factor 2."
    )
    keypoints_2d: NDArray[np.float32] = record_field(
        "float32", "T", "V", _K, 2, doc="Pictures of keypoints_3d, px, also outside of the picture."
    )
    keypoints_2d_mask: NDArray[np.bool_] = record_field(
        "bool",
        "T",
        "V",
        _K,
        doc="Where keypoints_2d is known and in the picture, occluded or not: -0.5 < x < width - 0.5, for "
        "the middle of the first pixel is 0; y likewise.",
    )
    detections_2d: NDArray[np.float32] = record_field(
        "float32", "T", "V", _K, 2, doc="What a 2D detector found, px."
    )
    detections_2d_mask: NDArray[np.bool_] = record_field(
        "bool", "T", "V", _K, doc="Where detections_2d is known."
    )
    detections_confidence: NDArray[np.float32] = record_field(
        "float32", "T", "V", _K, doc="The detector's confidence, 0 to 1; NaN where it found nothing."
    )
    true_keypoints_3d: NDArray[np.float32] = record_field(
        "float32", "T", _K, 3, doc="The truth of a synthetic trial, as keypoints_3d, with soft tissue, m."
    )
    true_keypoints_3d_mask: NDArray[np.bool_] = record_field(
        "bool", "T", _K, doc="Where true_keypoints_3d is known; nowhere in recordings of people."
    )
    true_kinematics: NDArray[np.float32] = record_field(
        "float32", "T", _A, doc="The truth of a synthetic trial, as kinematics, rad and m."
    )
    true_kinematics_mask: NDArray[np.bool_] = record_field(
        "bool", "T", _A, doc="Where true_kinematics is known."
    )
    true_curvature: NDArray[np.float32] = record_field(
        "float32", "T", 2, doc="Lordosis (L1-S1) and kyphosis (T3-T12) of the true keypoints, rad."
    )
    true_curvature_mask: NDArray[np.bool_] = record_field(
        "bool", "T", 2, doc="Where true_curvature is known."
    )

    def __post_init__(self) -> None:
        sizes: dict[Any, int] = {"T": len(self.times), "V": len(self.camera_names)}
        for field in CLIP_FIELDS:
            if field.kind == "float32" and not field.shape:  # as a record gives it back
                object.__setattr__(self, field.name, float(np.float32(getattr(self, field.name))))
            if field.kind == "text" or not field.shape:
                continue
            array = np.asarray(getattr(self, field.name), field.kind)
            if array.shape != (valid := tuple(sizes.get(d, d) for d in field.shape)):
                raise ShapeError(
                    f"{field.name} of a clip of {self.subject}, {self.action} has the shape {array.shape}; "
                    f"valid is {valid}"
                )
            object.__setattr__(self, field.name, array)

    @property
    def n_frames(self) -> int:
        """T."""
        return len(self.times)

    @property
    def cameras(self) -> Cameras:
        """The cameras, in the ground frame (Y up)."""
        model = self.camera_distortion_model
        if model not in TANGENTIAL_FACTOR:
            raise UnknownNameError("Distortion model", model, "the models of lenses", TANGENTIAL_FACTOR)
        return Cameras(
            self.camera_rotations,
            self.camera_translations,
            self.camera_focal_lengths,
            self.camera_principal_points,
            self.camera_skews,
            self.camera_distortion,
            self.camera_sizes,
            self.camera_names,
            model,  # type: ignore[arg-type]
        )


CLIP_FIELDS: tuple[RecordField, ...] = fields_of(Clip)


def split_of(subject: str) -> str:
    """``train`` or ``test``; subjects that the paper doesn't have are for training."""
    return next((split for split, subjects in SPLITS.items() if subject in subjects), "train")


def cameras_in_ground(cameras: Cameras, T_ground_cameras: NDArray[np.float64] | None = None) -> Cameras:
    """Cameras of a Z-up world in the ground frame (Y up), float64.

    Args:
        cameras: in their world.
        T_ground_cameras: [4 4] from that world, turned to Y up, to the keypoints' frame, where they differ.
    """
    turn = np.eye(4) if T_ground_cameras is None else np.asarray(T_ground_cameras)
    R = np.asarray(cameras.rotations, np.float64) @ R_yup_zup.T @ turn[:3, :3].T
    t = np.asarray(cameras.translations, np.float64) - R @ turn[:3, 3]
    return dataclasses.replace(cameras, rotations=R, translations=t)


def clips_of(
    trial: SpineTrial,
    cameras: Cameras | None = None,
    truth: SpineTrial | None = None,
    *,
    scale_factors: NDArray[np.float64] | None = None,
    height_m: float | None = None,
    mass_kg: float | None = None,
    numbers: NDArray[np.int32] | None = None,
    max_frames: int = MAX_CLIP_FRAMES,
) -> Iterator[Clip]:
    """A trial in clips of ``max_frames``, the last one shorter where they don't divide.

    Args:
        trial: the annotation.
        cameras: in their Z-up world; views that the trial has detections of are taken from them by name.
        truth: of a synthetic trial, frame by frame.
        scale_factors: [30 3] of the generic model's bodies.
        height_m: of the subject.
        mass_kg: likewise.
        numbers: [T] of the frames, as the source counts them; from 0 without gaps if not given.
        max_frames: of a clip.

    Raises:
        ShapeError: the truth has other frames.
        UnknownNameError: the trial has detections of a camera that is not there.
    """
    if truth is not None and truth.n_frames != trial.n_frames:
        raise ShapeError(
            f"The truth of {trial.name} has {truth.n_frames} frames; valid are the trial's {trial.n_frames}"
        )
    cameras = _no_cameras() if cameras is None else cameras
    placed = cameras_in_ground(cameras, trial.T_ground_cameras)
    about: dict[str, Any] = {
        "subject": trial.subject,
        "action": trial.action,
        "source": trial.source,
        "is_synthetic": trial.is_synthetic,
        "rate_hz": trial.rate_hz,
        "height_m": np.nan if height_m is None else height_m,
        "mass_kg": np.nan if mass_kg is None else mass_kg,
        "scale_factors": np.full((N_BODIES, 3), np.nan) if scale_factors is None else scale_factors,
        **_camera_fields(placed),
    }
    frames = _frames_of(trial, cameras.names, truth)
    frames["frames"] = np.arange(trial.n_frames) if numbers is None else numbers
    for first in range(0, trial.n_frames, max_frames):
        part: dict[str, Any] = {name: values[first : first + max_frames] for name, values in frames.items()}
        pixels, inside = pictures_of(placed, part["keypoints_3d"], max_frames)
        part |= {"keypoints_2d": pixels, "keypoints_2d_mask": inside}
        yield Clip(first_frame=first, **about, **part)


def _no_cameras() -> Cameras:
    return Cameras(
        np.zeros((0, 3, 3)), np.zeros((0, 3)), np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0),
        np.zeros((0, 8)), np.zeros((0, 2)), (),
    )  # fmt: skip


def _camera_fields(cameras: Cameras) -> dict[str, Any]:
    names = ("rotations", "translations", "focal_lengths", "principal_points", "skews", "distortion", "sizes")
    return {
        "camera_names": tuple(cameras.names),
        "camera_distortion_model": cameras.distortion_model,
        **{f"camera_{name}": np.asarray(getattr(cameras, name), np.float64) for name in names},
    }


def _frames_of(
    trial: SpineTrial, camera_names: tuple[str, ...], truth: SpineTrial | None
) -> dict[str, NDArray[Any]]:
    """The per-frame fields, but for the pictures."""
    frame = (trial.n_frames,)
    curvature = _columns(trial, CURVATURE_NAMES)
    true_curvature = None if truth is None else _columns(truth, CURVATURE_NAMES[:2])
    values = {
        "keypoints_3d": (trial.keypoints, (_K, 3), 1),
        "kinematics": (trial.coordinates, (_A,), 0),
        "vertebral_rotations": (trial.vertebral_rotations, (N_LEVELS, 3), 1),
        "curvature": (curvature, (4,), 0),
        "detections_2d": (_in_views(trial.detections, trial, camera_names), (len(camera_names), _K, 2), 1),
        "true_keypoints_3d": (None if truth is None else truth.keypoints, (_K, 3), 1),
        "true_kinematics": (None if truth is None else truth.coordinates, (_A,), 0),
        "true_curvature": (true_curvature, (2,), 0),
    }  # fmt: skip
    found: dict[str, Any] = {"times": trial.times, "quality": trial.quality.astype(np.int32)}
    for name, (value, rest, width) in values.items():
        array = np.full((*frame, *rest), np.nan) if value is None else np.asarray(value)
        finite = np.isfinite(array)
        known: NDArray[np.bool_] = np.all(finite, axis=-1, keepdims=True) if width else finite
        found[name] = np.where(known, array, np.nan).astype(np.float32)
        found[f"{name}_mask"] = known[..., 0] if width else known
    confidence = _in_views(trial.detection_confidence, trial, camera_names)
    missing = np.full((*frame, len(camera_names), _K), np.nan)
    confidence = missing if confidence is None else confidence
    found["detections_confidence"] = np.where(found["detections_2d_mask"], confidence, np.nan).astype(
        np.float32
    )
    return found


def _columns(trial: SpineTrial, names: Sequence[str]) -> NDArray[np.float64]:
    """[T N] of angles that a trial may lack."""
    missing = np.full(trial.n_frames, np.nan)
    found = (getattr(trial, name) for name in names)
    return np.stack([missing if angles is None else angles for angles in found], axis=-1)


def _in_views(
    values: NDArray[np.float64] | None, trial: SpineTrial, camera_names: tuple[str, ...]
) -> NDArray[np.float64] | None:
    """[T V' ...] of the trial's cameras as [T V ...] of these; NaN in those that it doesn't have."""
    if values is None:
        return None
    placed = np.full((len(values), len(camera_names), *values.shape[2:]), np.nan)
    for view, name in enumerate(trial.camera_names):
        if name not in camera_names:
            raise UnknownNameError("Camera", name, f"the calibration of {trial.subject}", camera_names)
        placed[:, camera_names.index(name)] = values[:, view]
    return placed


def pictures_of(
    cameras: Cameras, keypoints: NDArray[np.float32], block: int = MAX_CLIP_FRAMES
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """``keypoints_2d`` and its mask.

    Args:
        cameras: in the ground frame.
        keypoints: [T 37 3] m, NaN where they are not known.
        block: T is filled up to the next multiple of it, and clips of one length share a compiled program.
    """
    pixels, comes_back = _pictures(cameras, keypoints, block)
    return pixels, in_picture(pixels, np.asarray(cameras.sizes, np.float64)[:, None]) & comes_back


def folded_back(
    cameras: Cameras, keypoints: NDArray[np.float32], block: int = MAX_CLIP_FRAMES
) -> NDArray[np.bool_]:
    """[T V 37]: where a pixel of `pictures_of` is none, for the point is beyond the lens' field of view.

    A lens polynomial folds back far outside of it, so that such a pixel may lie anywhere.
    """
    pixels, comes_back = _pictures(cameras, keypoints, block)
    return np.isfinite(pixels).all(axis=-1) & ~comes_back


def _pictures(
    cameras: Cameras, keypoints: NDArray[np.float32], block: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """[T V 37 2] px, and where they lead back to the point's ray."""
    count, n_views = len(keypoints), len(cameras.names)
    if not n_views:
        empty = np.zeros((count, 0, _K, 2), np.float32)
        return empty, empty[..., 0].astype(bool)
    padded = np.full((-(-count // block) * block, _K, 3), np.nan, np.float32)
    padded[:count] = keypoints
    unnamed = dataclasses.replace(cameras, names=("",) * n_views)
    pixels, comes_back = (np.asarray(x)[:count] for x in _project(unnamed, jnp.asarray(padded)))
    return pixels, comes_back


@jax.jit
def _project(cameras: Cameras, points: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[T V K 2] px from [T K 3] m, and where undoing the lens distortion gives the point's ray again."""
    seen = project(cameras, points)
    plain = dataclasses.replace(cameras, distortion=jnp.zeros_like(cameras.distortion))
    rays = normalised_from_pixels(cameras, project(plain, points).keypoints)
    found = undistort(cameras, normalised_from_pixels(cameras, seen.keypoints))
    # Far outside of a lens's field of view its polynomial folds back, even into the picture.
    comes_back = (jnp.abs(found - rays) < FOLD).all(axis=-1)
    return jnp.moveaxis(seen.keypoints, 2, 1), jnp.moveaxis(comes_back, 2, 1)
