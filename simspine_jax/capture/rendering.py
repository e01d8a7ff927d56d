"""Rendered pictures of synthetic trials, with keypoints and their true visibility.

A picture shows one frame of a trial of `simspine_jax.capture.capture`: the true pose as a clothed figure, and
the true keypoints with their soft tissue. Its camera stands where one of the subject's rig stands, or
anywhere; of what it sees a window around the person is rendered, which is what cropping and scaling a larger
picture would give. There is no lens distortion.

Visibility. Keypoints lie inside of the body, so what is asked is how much lies in front of them. The first
surface at the keypoint's pixel may be in front of it by

- `CLEAR_M`, whatever it is;
- `SLANT` times the keypoint's depth under skin, clothes and hair and `CLEAR_M`, if it belongs to the limb or
  trunk that carries the keypoint: a hip is seen from the front, an elbow behind its own forearm is not.

Else the keypoint is occluded. Markers of the spine lie close under the skin of the back: the chest hides
them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from simspine_jax.capture.actions import ACTION_NAMES
from simspine_jax.capture.appearance import Box, Pattern, draw_outfit, draw_patterns, draw_room
from simspine_jax.capture.capture import Capture, capture_trial, check_seed
from simspine_jax.capture.figure import Figure, Group, make_figure
from simspine_jax.capture.ground import SEAT_M
from simspine_jax.capture.rigs import CAMERA_NAMES
from simspine_jax.capture.stage import NOTHING, Shot, Stage
from simspine_jax.capture.subjects import SUBJECT_NAMES, make_subject
from simspine_jax.clips import cameras_in_ground
from simspine_jax.errors import ShapeError, UnknownNameError
from simspine_jax.geometry.pixels import in_picture
from simspine_jax.kinematics.forward import Poses, forward_kinematics
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.pictures import OCCLUDED, OUTSIDE, VISIBLE, Picture, encode_jpeg, import_cv2
from simspine_jax.skeleton import KEYPOINT_NAMES

CLEAR_M = 0.02
"""What is not farther than this in front of a keypoint doesn't hide it."""

SLANT = 2.0
"""Depth of a keypoint along a line of sight that is 60 degrees off the skin's normal, over that along it."""

# Those of neck and clavicles are less than the figure's, so that they don't shine through to the other side.
_DEPTH_M = {
    "nose": 0.01, "eye": 0.01, "ear": 0.012, "head": 0.03,
    "neck": 0.02, "neck_02": 0.02, "neck_03": 0.03, "clavicle": 0.04, "latissimus": 0.025, "spine": 0.02,
    "hip": 0.02, "shoulder": 0.025, "elbow": 0.03, "wrist": 0.018, "side_hip": 0.075, "knee": 0.053,
    "ankle": 0.03, "heel": 0.03, "big_toe": 0.022, "small_toe": 0.02,
}  # fmt: skip

TRIAL_S = 20.0
"""Length of the trials whose frames are shown."""

FREE = "free"
"""The name of cameras that belong to no rig."""

Numbers = NDArray[np.float64]

_SLOTS = (*CAMERA_NAMES, *(FREE,) * len(CAMERA_NAMES))
_SEATED = ("Eating", "Phoning", "Sitting", "Smoking")
_SIZES = ((384, 384), (384, 288), (384, 512))  # height, width
# Flesh beyond the keypoints, as a share of the keypoints' box, and how much larger the window is than that.
_FLESH, _ROOMY, _CUT, _CUT_SHARE = 0.07, (1.05, 1.6), (0.6, 1.0), 0.08
_OCCLUDER_SHARE = 0.3
_LEAST_VISIBLE = 6


def _groups_of(name: str) -> frozenset[Group]:
    """What carries a keypoint."""
    side, _, part = name.partition("_")
    limbs: dict[str, tuple[str, ...]] = {
        "shoulder": ("trunk", f"{side}_arm"), "elbow": (f"{side}_arm",), "wrist": (f"{side}_arm",),
        "hip": ("trunk", f"{side}_leg"), "latissimus": ("trunk",), "clavicle": ("trunk", "head"),
        "eye": ("head",), "ear": ("head",),
    }  # fmt: skip
    if side in ("left", "right"):
        return frozenset(limbs.get(part, (f"{side}_leg",)))  # type: ignore[arg-type]
    if name in ("nose", "head"):
        return frozenset({"head"})
    return frozenset({"trunk", "head"}) if name.startswith("neck") else frozenset({"trunk"})


KEYPOINT_GROUPS: tuple[frozenset[Group], ...] = tuple(_groups_of(name) for name in KEYPOINT_NAMES)
"""The limbs, head or trunk that carry each of the 37 keypoints."""


def _depth_of(name: str) -> float:
    side, _, part = name.partition("_")
    if side in ("left", "right"):
        return _DEPTH_M["side_hip" if part == "hip" else part]
    return _DEPTH_M["spine" if side == "spine" else name]


KEYPOINT_DEPTHS_M: Numbers = np.array([_depth_of(name) for name in KEYPOINT_NAMES])
"""``[37]``: how far each keypoint is below the nearest skin, clothes or hair of the figure."""


@dataclass(frozen=True)
class PictureItem:
    """Pictures of one subject in one action: a piece of work that can be done alone.

    Attributes:
        subject: of `SUBJECT_NAMES`.
        action: of `ACTION_NAMES`.
        first: number of the first picture in the whole set.
        count: of the pictures.
        seed: of the whole set.
    """

    subject: str
    action: str
    first: int
    count: int
    seed: int


def picture_items(
    *,
    subjects: Sequence[str] = SUBJECT_NAMES,
    actions: Sequence[str] = ACTION_NAMES,
    count: int = 10_500,
    seed: int = 0,
) -> tuple[PictureItem, ...]:
    """A set of ``count`` pictures, spread evenly over subjects and actions.

    Raises:
        UnknownNameError: a subject or an action is unknown.
        ShapeError: ``count`` or ``seed`` is not valid.
    """
    check_seed(seed)
    for kind, names, valid in (("Subject", subjects, SUBJECT_NAMES), ("Action", actions, ACTION_NAMES)):
        for name in names:
            if name not in valid:
                raise UnknownNameError(kind, name, "the set", valid)
    if count < 1:
        raise ShapeError(f"{count} pictures were asked for; valid is from 1")
    pairs = [(subject, action) for subject in subjects for action in actions]
    ends = [count * i // len(pairs) for i in range(len(pairs) + 1)]
    items = (
        PictureItem(*pair, first, end - first, seed)
        for pair, first, end in zip(pairs, ends[:-1], ends[1:], strict=True)
    )
    return tuple(item for item in items if item.count)


def synthetic_pictures(
    model: SpineModel, *, subjects: Sequence[str] = SUBJECT_NAMES, count: int = 10_500, seed: int = 0
) -> Iterator[tuple[str, Picture]]:
    """Pictures of all actions with their keys, item by item; equal arguments give equal bytes on a machine.

    Args:
        model: the spine model with the paper's markers.
        subjects: of `SUBJECT_NAMES`.
        count: of the pictures.
        seed: picks everything.

    Raises:
        UnknownNameError: a subject is unknown.
        ShapeError: ``count`` or ``seed`` is not valid.
        SimspineError: nothing can be rendered on this machine.
    """
    for item in picture_items(subjects=subjects, count=count, seed=seed):
        yield from pictures_of(model, item)


def pictures_of(model: SpineModel, item: PictureItem) -> Iterator[tuple[str, Picture]]:
    """The item's pictures with their keys, such as ``S1_Walking_00042``.

    Raises:
        UnknownNameError: its subject or action is unknown, or the model lacks one of the paper's markers.
        SimspineError: nothing can be rendered on this machine.
    """
    subject = make_subject(model, item.subject, item.seed)
    capture = capture_trial(model, subject, item.action, TRIAL_S, seed=item.seed)
    poses = forward_kinematics(model, capture.q, scale_factors=subject.scale_factors)
    words = (item.seed, SUBJECT_NAMES.index(item.subject), ACTION_NAMES.index(item.action))
    figure = make_figure(model, subject, _mixed(*words))
    trial = _Trial(item, capture, poses, model.body_names.index("pelvis"))
    n_frames = len(np.asarray(capture.times))
    with Stage(figure, draw_patterns(np.random.default_rng(words))) as stage:
        for k in range(item.count):
            seed = _mixed(*words, item.first + k) >> 1
            random = np.random.default_rng(seed)
            frame = int((k + random.random()) * n_frames / item.count)
            picture = _take(stage, trial, frame, _SLOTS[(item.first + k) % len(_SLOTS)], seed, random)
            yield f"{item.subject}_{item.action}_{item.first + k:05d}", picture


def _mixed(*words: int) -> int:
    """One seed from several."""
    return int(np.random.SeedSequence(words).generate_state(1)[0])


class _Trial:
    """A trial as NumPy arrays in ground, with its rig."""

    def __init__(self, item: PictureItem, capture: Capture, poses: Poses, pelvis: int):
        self.item, self.pelvis = item, pelvis
        self.keypoints = np.asarray(capture.keypoints, float)
        self.positions = np.asarray(poses.body_positions, float)
        self.rotations = np.asarray(poses.body_rotations, float)
        self.scale = np.asarray(capture.subject.scale_factors, float)[pelvis]
        self.rig = cameras_in_ground(capture.cameras)


def _take(
    stage: Stage, trial: _Trial, frame: int, camera: str, seed: int, random: np.random.Generator
) -> Picture:
    """One picture; furniture that hides nearly all of the person is taken away."""
    points = trial.keypoints[frame]
    rotation, translation = _camera_pose(trial, points, camera, random)
    size = _SIZES[random.integers(len(_SIZES))]
    matrix = window_matrix(points @ rotation.T + translation, size, random)
    stage.pose(trial.positions[frame], trial.rotations[frame])
    stage.dress(draw_outfit(random))
    seat = _seat(trial, frame, random) if trial.item.action in _SEATED else None
    eye = -rotation.T @ translation
    room = draw_room(random, points, eye, seat, random.random() < _OCCLUDER_SHARE)
    develop = _Development.draw(random)
    for furnished in (room, replace(room, furniture=())):
        stage.furnish(furnished)
        shot = stage.shoot(matrix, rotation, translation, size)
        local = points @ rotation.T + translation
        pixels = project_points(matrix, local)
        visibility = keypoint_visibility(shot, stage.figure, pixels, local[:, 2])
        if (visibility == VISIBLE).sum() >= _LEAST_VISIBLE:
            break
    box, area = _silhouette(shot)
    return Picture(
        jpeg=encode_jpeg(develop.apply(shot.pixels), develop.quality),
        width=size[1],
        height=size[0],
        subject=trial.item.subject,
        action=trial.item.action,
        camera=camera,
        frame=frame,
        is_synthetic=True,
        appearance_seed=seed,
        box=box.astype(np.float32),
        area=area,
        keypoints_2d=pixels.astype(np.float32),
        visibility=visibility,
        keypoints_3d=local.astype(np.float32),
        camera_matrix=matrix,
        camera_rotation=rotation,
        camera_translation=translation,
        camera_distortion=np.zeros(8),
    )


def project_points(matrix: Numbers, points: Numbers) -> Numbers:
    """``[P 2]`` px of points ``[P 3]`` in the camera's frame, m; NaN behind it."""
    homogeneous = points @ matrix.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(points[:, 2:] > 0, homogeneous[:, :2] / homogeneous[:, 2:], np.nan)


def keypoint_visibility(shot: Shot, figure: Figure, pixels: Numbers, depths: Numbers) -> NDArray[np.int32]:
    """COCO's 0, 1 or 2 for each keypoint, by the rule at the head of this module.

    Args:
        shot: with its depth.
        figure: that is shown.
        pixels: ``[37 2]`` of the keypoints, px.
        depths: ``[37]`` of the keypoints along the optical axis, m.
    """
    height, width = shot.labels.shape
    inside = in_picture(pixels, (width, height))
    column, row = np.where(inside[:, None], pixels, 0).round().astype(int).clip(0, (width - 1, height - 1)).T
    cover, label = depths - shot.depth[row, column], shot.labels[row, column]
    own = np.array(
        [
            at != NOTHING and figure.surfaces[at].group in groups
            for at, groups in zip(label.tolist(), KEYPOINT_GROUPS, strict=True)
        ]
    )
    seen = cover <= CLEAR_M + np.where(own, SLANT * KEYPOINT_DEPTHS_M, 0)
    return np.where(inside, np.where(seen, VISIBLE, OCCLUDED), OUTSIDE).astype(np.int32)


def _silhouette(shot: Shot) -> tuple[Numbers, float]:
    """Box and area of what is seen of the figure, px."""
    person = shot.labels != NOTHING
    if not person.any():
        return np.array([-0.5, -0.5, shot.labels.shape[1], shot.labels.shape[0]]), 0.0
    rows, columns = np.flatnonzero(person.any(axis=1)), np.flatnonzero(person.any(axis=0))
    left, top = columns[0] - 0.5, rows[0] - 0.5
    return np.array([left, top, columns[-1] + 0.5 - left, rows[-1] + 0.5 - top]), float(person.sum())


def window_matrix(points: Numbers, size: tuple[int, int], random: np.random.Generator) -> Numbers:
    """K ``[3 3]``, px, of a window around a person: whole and with room in most pictures, cut off in few.

    Args:
        points: ``[P 3]`` of the person in the camera's frame, m.
        size: height and width of the picture, px.
        random: what its place and extent are drawn from.
    """
    plane = points[:, :2] / np.maximum(points[:, 2:], 0.1)
    low, high = plane.min(axis=0), plane.max(axis=0)
    center, extent = (low + high) / 2, (high - low) + 2 * _FLESH * (high - low).max()
    height, width = size
    whole = max(extent[1], extent[0] * height / width)
    high_share = random.uniform(*(_CUT if random.random() < _CUT_SHARE else _ROOMY))
    window = whole * high_share * np.array([width / height, 1.0])
    center = center + random.uniform(-0.45, 0.45, 2) * np.abs(window - extent)
    focal = height / window[1]
    x, y = (np.array([width, height]) - 1) / 2 - focal * center
    return np.array([[focal, 0, x], [0, focal, y], [0, 0, 1]])


def _camera_pose(
    trial: _Trial, points: Numbers, camera: str, random: np.random.Generator
) -> tuple[Numbers, Numbers]:
    """R and t of a camera of the rig, or of one anywhere around the person."""
    if camera != FREE:
        view = trial.rig.names.index(camera)
        return np.asarray(trial.rig.rotations)[view], np.asarray(trial.rig.translations)[view]
    middle = points.mean(axis=0)
    distance, turn = math.exp(random.uniform(math.log(2.0), math.log(6.5))), random.uniform(0, 2 * np.pi)
    height = random.uniform(0.25, 2.3) if random.random() < 0.4 else random.uniform(0.9, 1.8)
    eye = np.array([middle[0] + distance * math.cos(turn), height, middle[2] + distance * math.sin(turn)])
    aim = middle + random.normal(0, 0.15, 3) - eye
    forward = aim / np.linalg.norm(aim)
    right = np.cross(forward, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    upright = np.stack([right, np.cross(forward, right), forward])
    rotation = Rotation.from_rotvec([0, 0, math.radians(random.normal(0, 5.0))]).as_matrix() @ upright
    return rotation, -rotation @ eye


def _seat(trial: _Trial, frame: int, random: np.random.Generator) -> Box:
    """The seat under the seat bones."""
    turn = trial.rotations[frame, trial.pelvis]
    bones = trial.positions[frame, trial.pelvis] + (np.array(SEAT_M) * trial.scale) @ turn.T
    forward = math.atan2(-turn[2, 0], turn[0, 0])
    thick, deep, wide = random.uniform(0.015, 0.04), random.uniform(0.17, 0.21), random.uniform(0.19, 0.24)
    ahead = 0.07 * np.array([math.cos(forward), -math.sin(forward)])
    x, z = bones.mean(axis=0)[[0, 2]] + ahead
    top = max(bones[:, 1].min() + 0.008, 0.12)
    color = tuple(float(c) for c in random.uniform(0.15, 0.8) + random.normal(0, 0.06, 3))
    pattern = Pattern(0, tuple(min(max(c, 0.05), 1.0) for c in color))  # type: ignore[arg-type]
    return Box((float(x), float(top - thick), float(z)), (deep, thick, wide), forward, pattern)


@dataclass(frozen=True, eq=False)
class _Development:
    """How light becomes a picture: exposure, colour cast, the lens' blur, noise and JPEG's quality."""

    brightness: float
    cast: Numbers
    blur_px: float
    noise: NDArray[np.int16]
    quality: int

    @classmethod
    def draw(cls, random: np.random.Generator) -> _Development:
        amount = int(random.integers(0, 7))
        return cls(
            float(random.uniform(0.36, 0.56)),
            random.normal(1, 0.03, 3),
            float(random.uniform(0.45, 0.9)),
            random.integers(-amount, amount + 1, (max(s[0] for s in _SIZES), 512, 3), np.int16),
            int(random.integers(85, 96)),
        )

    def apply(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        cv2 = import_cv2()
        gain = np.clip(255 * self.brightness / max(pixels.mean(), 1.0), 0.6, 2.4) * self.cast
        levels = np.clip(np.arange(256)[:, None] * gain, 0, 255).astype(np.uint8)
        lit = cv2.LUT(np.ascontiguousarray(pixels), levels[None])
        blurred = cv2.GaussianBlur(lit, (0, 0), self.blur_px)
        noise = self.noise[: pixels.shape[0], : pixels.shape[1]]
        return np.clip(blurred.astype(np.int16) + noise, 0, 255).astype(np.uint8)
