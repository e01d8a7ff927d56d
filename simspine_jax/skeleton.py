"""The vocabulary: keypoints, regions, kinematic axes and markers, each defined here and nowhere else.

Sources: keypoint order, parents and regions are Table B of the SIMSPINE paper's supplement; OKS sigmas and
links are SpineTrack's; the marker placement is the one that the paper publishes for its OpenSim model.

Two things are inferred. The headers of the paper's Tables 3, 4 and 6 are lost in the text at hand; that
their columns are Cervical(5), Thoracic(6), Lumbar(4), Spine(15), Body(22) and All(37) follows from the
counts at the end of Table B and from the weighted means in those tables. And SpineTrack's OKS subset of nine
"spine" keypoints is another set than the paper's fifteen: it has the vertebral column alone.
"""

from __future__ import annotations

import os
import re
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

import numpy as np

from simspine_jax.errors import UnknownNameError

Region = Literal["cervical", "thoracic", "lumbar", "body"]


class Keypoint(NamedTuple):
    """A row of Table B: snake-case name, region, parent (empty for the root) and OKS sigma."""

    name: str
    region: Region
    parent: str
    sigma: float


class MarkerPlacement(NamedTuple):
    """A marker by its TRC name, fixed to a body at a location in the body's frame, metres."""

    name: str
    body: str
    location: tuple[float, float, float]


class CoordinateTarget(NamedTuple):
    """A pull of one coordinate (rad) to a value in inverse kinematics."""

    coordinate: str
    target: float
    weight: float


KEYPOINTS: tuple[Keypoint, ...] = (
    Keypoint("nose", "cervical", "head", 0.026),
    Keypoint("left_eye", "body", "nose", 0.025),
    Keypoint("right_eye", "body", "nose", 0.025),
    Keypoint("left_ear", "body", "left_eye", 0.035),
    Keypoint("right_ear", "body", "right_eye", 0.035),
    Keypoint("left_shoulder", "body", "left_clavicle", 0.079),
    Keypoint("right_shoulder", "body", "right_clavicle", 0.079),
    Keypoint("left_elbow", "body", "left_shoulder", 0.072),
    Keypoint("right_elbow", "body", "right_shoulder", 0.072),
    Keypoint("left_wrist", "body", "left_elbow", 0.062),
    Keypoint("right_wrist", "body", "right_elbow", 0.062),
    Keypoint("left_hip", "body", "hip", 0.107),
    Keypoint("right_hip", "body", "hip", 0.107),
    Keypoint("left_knee", "body", "left_hip", 0.087),
    Keypoint("right_knee", "body", "right_hip", 0.087),
    Keypoint("left_ankle", "body", "left_knee", 0.089),
    Keypoint("right_ankle", "body", "right_knee", 0.089),
    Keypoint("head", "cervical", "neck_03", 0.026),
    Keypoint("neck", "cervical", "spine_05", 0.04),
    Keypoint("hip", "lumbar", "", 0.07),
    Keypoint("left_big_toe", "body", "left_ankle", 0.079),
    Keypoint("right_big_toe", "body", "right_ankle", 0.079),
    Keypoint("left_small_toe", "body", "left_big_toe", 0.079),
    Keypoint("right_small_toe", "body", "right_big_toe", 0.079),
    Keypoint("left_heel", "body", "left_ankle", 0.079),
    Keypoint("right_heel", "body", "right_ankle", 0.079),
    Keypoint("spine_01", "lumbar", "hip", 0.1),
    Keypoint("spine_02", "lumbar", "spine_01", 0.1),
    Keypoint("spine_03", "lumbar", "spine_02", 0.1),
    Keypoint("spine_04", "thoracic", "spine_03", 0.08),
    Keypoint("spine_05", "thoracic", "spine_04", 0.08),
    Keypoint("left_latissimus", "thoracic", "spine_04", 0.12),
    Keypoint("right_latissimus", "thoracic", "spine_04", 0.12),
    Keypoint("left_clavicle", "thoracic", "spine_05", 0.07),
    Keypoint("right_clavicle", "thoracic", "spine_05", 0.07),
    Keypoint("neck_02", "cervical", "neck", 0.07),
    Keypoint("neck_03", "cervical", "neck_02", 0.06),
)
"""The 37 keypoints in SpineTrack's order: a keypoint's id is its position here."""

KEYPOINT_NAMES: tuple[str, ...] = tuple(k.name for k in KEYPOINTS)
N_KEYPOINTS = len(KEYPOINTS)
_ID = {name: i for i, name in enumerate(KEYPOINT_NAMES)}


def _ids(names: str) -> tuple[int, ...]:
    return tuple(_ID[name] for name in names.split())


def _constant(values) -> np.ndarray:
    array = np.asarray(values)
    array.setflags(write=False)
    return array


def _mirrored(name: str) -> str:
    side, _, rest = name.partition("_")
    return {"left": "right_", "right": "left_"}[side] + rest if side in ("left", "right") else name


def _trc(name: str) -> str:
    side, _, rest = name.partition("_")
    if side in ("left", "right"):
        return side[0].upper() + "".join(word.capitalize() for word in rest.split("_"))
    return name.capitalize()


SIGMAS = _constant([k.sigma for k in KEYPOINTS])
"""float64 [37]: the per-keypoint constants of OKS."""

SWAP = _constant(np.array([_ID[_mirrored(name)] for name in KEYPOINT_NAMES], np.int32))
"""int32 [37], as JAX indexes: the id of the partner on the other side, or one's own in the middle."""

PARENTS = _constant([_ID.get(k.parent, -1) for k in KEYPOINTS])
"""int [37]: the parent's id; -1 for the root, ``hip``."""

LINKS: tuple[tuple[int, int], ...] = tuple(
    (_ID[a], _ID[b])
    for a, b in map(
        str.split,
        (
            "left_ankle left_knee", "left_knee left_hip", "left_hip hip",
            "right_ankle right_knee", "right_knee right_hip", "right_hip hip",
            "head neck_03", "neck_03 neck_02", "neck_02 neck", "neck spine_05", "spine_05 spine_04",
            "spine_04 spine_03", "spine_03 spine_02", "spine_02 spine_01", "spine_01 hip",
            "left_shoulder left_elbow", "left_elbow left_wrist",
            "right_shoulder right_elbow", "right_elbow right_wrist",
            "left_eye right_eye", "head nose", "nose left_eye", "nose right_eye",
            "left_eye left_ear", "right_eye right_ear", "left_ear left_shoulder", "right_ear right_shoulder",
            "left_ankle left_big_toe", "left_ankle left_small_toe", "left_ankle left_heel",
            "right_ankle right_big_toe", "right_ankle right_small_toe", "right_ankle right_heel",
            "spine_05 left_clavicle", "spine_05 right_clavicle",
            "left_shoulder left_clavicle", "right_clavicle right_shoulder",
            "spine_04 left_latissimus", "spine_04 right_latissimus",
        ),
    )
)  # fmt: skip
"""Pairs of ids that a drawing joins, in SpineTrack's order."""


def _region(*names: Region) -> tuple[int, ...]:
    return tuple(i for i, k in enumerate(KEYPOINTS) if k.region in names)


REGIONS = MappingProxyType(
    {
        "cervical": _region("cervical"),
        "thoracic": _region("thoracic"),
        "lumbar": _region("lumbar"),
        "spine": _region("cervical", "thoracic", "lumbar"),
        "body": _region("body"),
        "all": _region(*get_args(Region)),
    }
)
"""Ids, ascending, of the subsets that the paper reports: 5, 6, 4, 15, 22 and 37 keypoints."""

OKS_SUBSETS = MappingProxyType(
    {
        "body": tuple(range(17)),
        "spine": _ids("neck_03 neck_02 neck spine_05 spine_04 spine_03 spine_02 spine_01 hip"),
        "all": tuple(range(N_KEYPOINTS)),
    }
)
"""Ids of SpineTrack's OKS subsets: 17, 9 and 37 keypoints. Its ``body`` is COCO's, not the paper's 22."""

TRC_NAMES: tuple[str, ...] = tuple(_trc(name) for name in KEYPOINT_NAMES)
"""Names in TRC files, in keypoint order: ``LShoulder``, ``Spine_01``, ``Neck_02``."""

RELEASE_MARKER_NAMES: tuple[str, ...] = (
    "Hip", "Spine_01", "Spine_02", "Spine_03", "Spine_04", "Spine_05", "Neck", "Neck_02", "Neck_03", "Head",
    "Nose", "REye", "LEye", "REar", "LEar", "RLatissimus", "LLatissimus",
    "RClavicle", "RShoulder", "RElbow", "RWrist", "LClavicle", "LShoulder", "LElbow", "LWrist",
    "RHip", "RKnee", "RAnkle", "RBigToe", "RSmallToe", "RHeel",
    "LHip", "LKnee", "LAnkle", "LBigToe", "LSmallToe", "LHeel",
)  # fmt: skip
"""The order of markers in the official HDF5 release."""

RELEASE_TO_KEYPOINT = _constant([TRC_NAMES.index(name) for name in RELEASE_MARKER_NAMES])
"""int [37]: the keypoint id of each marker of the HDF5 release."""

REDUCED_NAMES: tuple[str, ...] = (
    "hip", "spine_01", "spine_02", "spine_03", "spine_04", "spine_05", "neck", "neck_02", "neck_03",
    "head", "nose", "left_clavicle", "right_clavicle", "left_latissimus", "right_latissimus",
)  # fmt: skip
"""The 15 keypoints of the reduced public release, in its order."""

REDUCED_IDS = _constant([_ID[name] for name in REDUCED_NAMES])
"""int [15]: their ids among the 37."""

REDUCED_PARENTS = _constant(
    [REDUCED_NAMES.index(KEYPOINTS[i].parent) if KEYPOINTS[i].parent else -1 for i in REDUCED_IDS]
)
"""int [15]: their parents among the 15; -1 for ``hip``."""


def trc_name(name: str) -> str:
    """A keypoint's TRC name: ``left_shoulder`` becomes ``LShoulder``.

    Raises:
        UnknownNameError: it is not one of the 37.
    """
    if name not in _ID:
        raise UnknownNameError("Keypoint", name, "the vocabulary", KEYPOINT_NAMES)
    return TRC_NAMES[_ID[name]]


def keypoint_name(trc: str) -> str:
    """The keypoint of a TRC name: ``LShoulder`` becomes ``left_shoulder``.

    Raises:
        UnknownNameError: it is not one of the 37.
    """
    if trc not in TRC_NAMES:
        raise UnknownNameError("Marker", trc, "the vocabulary", TRC_NAMES)
    return KEYPOINT_NAMES[TRC_NAMES.index(trc)]


_LUMBAR_JOINTS = (
    "L5_S1_IVDjnt", "L4_L5_IVDjnt", "L3_L4_IVDjnt", "L2_L3_IVD_jnt", "L1_L2_IVD_jnt", "L1_T12_IVD_jnt",
)  # fmt: skip

LUMBAR_LEVELS: tuple[str, ...] = ("L5_S1", "L4_L5", "L3_L4", "L2_L3", "L1_L2", "L1_T12")
"""The lumbar joints from below; the model writes T12-L1 as ``L1_T12``."""

LUMBAR_MOTIONS: tuple[str, ...] = ("Flex_Ext", "Lat_Bending", "axial_rotation")
"""The three axes of a lumbar joint: level and motion joined by ``_`` name a coordinate."""

_PELVIS = (("ground_pelvis", "pelvis_tilt pelvis_list pelvis_rotation pelvis_tx pelvis_ty pelvis_tz"),)
_LEG = (
    ("hip_{0}", "hip_flexion_{0} hip_adduction_{0} hip_rotation_{0}"),
    ("walker_knee_{0}", "knee_angle_{0}"),
    ("patellofemoral_{0}", "knee_angle_{0}_beta"),
    ("ankle_{0}", "ankle_angle_{0}"),
    ("subtalar_{0}", "subtalar_angle_{0}"),
    ("mtp_{0}", "mtp_angle_{0}"),
)
_ARM = (
    ("acromial_{0}", "arm_flex_{0} arm_add_{0} arm_rot_{0}"),
    ("elbow_{0}", "elbow_flex_{0}"),
    ("radioulnar_{0}", "pro_sup_{0}"),
    ("radius_hand_{0}", "wrist_flex_{0} wrist_dev_{0}"),
)
_LUMBAR = tuple(
    (joint, " ".join(f"{level}_{motion}" for motion in LUMBAR_MOTIONS))
    for joint, level in zip(_LUMBAR_JOINTS, LUMBAR_LEVELS, strict=True)
)
_TRUNK = (
    ("Abdjnt", "Abs_r3 Abs_r2 Abs_r1 Abs_t1 Abs_t2"),
    ("head_torso", "neck_flexion neck_bending neck_rotation"),
)
_ORDER = (("", _PELVIS), ("r", _LEG), ("l", _LEG), ("", _LUMBAR), ("", _TRUNK), ("r", _ARM), ("l", _ARM))
_AXES = tuple(
    (joint.format(side), axis.format(side))
    for side, joints in _ORDER
    for joint, axes in joints
    for axis in axes.split()
)

AXIS_NAMES: tuple[str, ...] = tuple(axis for _, axis in _AXES)
"""SIMSPINE's 62 kinematic axes: the coordinates of its OpenSim model in the model's order."""

AXIS_JOINTS: tuple[str, ...] = tuple(joint for joint, _ in _AXES)
"""The OpenSim joint of each axis."""


def _other_side(axis: str) -> str:
    """The axis with right and left exchanged, as ``hip_flexion_l`` of ``hip_flexion_r``."""
    return re.sub(r"_([rl])(?=_|$)", lambda m: "_l" if m[1] == "r" else "_r", axis)


_TURNED_OVER = (
    "pelvis_list", "pelvis_rotation", "pelvis_tz", "Lat_Bending", "axial_rotation", "Abs_r2", "Abs_r1",
    "neck_bending", "neck_rotation",
)  # fmt: skip

AXIS_SWAP = _constant(np.array([AXIS_NAMES.index(_other_side(axis)) for axis in AXIS_NAMES], np.int32))
"""int32 [62]: the axis on the other side, or the axis' own in the middle."""

AXIS_SIGNS = _constant([-1.0 if axis.endswith(_TURNED_OVER) else 1.0 for axis in AXIS_NAMES])
"""float64 [62]: -1 for axes of the middle that change sign where left and right change places.

A pose in the mirror has the angles ``AXIS_SIGNS * angles[AXIS_SWAP]``.
"""

_MIDDLE = (
    MarkerPlacement("Hip", "pelvis", (-0.156262, 0.004088, 0.0)),
    MarkerPlacement("Spine_01", "lumbar5", (-0.036870, 0.014393, 0.0)),
    MarkerPlacement("Spine_02", "lumbar3", (-0.047699, -0.004161, 0.0)),
    MarkerPlacement("Spine_03", "lumbar1", (-0.044242, -0.009101, 0.0)),
    MarkerPlacement("Spine_04", "torso", (-0.080639, 0.215644, 0.000348)),
    MarkerPlacement("Spine_05", "torso", (-0.075034, 0.338510, -0.000626)),
    MarkerPlacement("Neck", "torso", (-0.042956, 0.413061, -0.00145)),
    MarkerPlacement("Neck_02", "torso", (-0.015141, 0.459957, -0.00145)),
    MarkerPlacement("Neck_03", "torso", (-0.004862, 0.499958, -0.00145)),
    MarkerPlacement("Head", "head", (0.015922, 0.164131, 0.0)),
    MarkerPlacement("Nose", "head", (0.116266, 0.012610, 0.000153)),
)
_RIGHT = (
    MarkerPlacement("RLatissimus", "torso", (-0.075097, 0.276519, 0.094742)),
    MarkerPlacement("RClavicle", "torso", (0.028295, 0.369893, 0.025133)),
    MarkerPlacement("RShoulder", "torso", (-0.012752, 0.366307, 0.201574)),
    MarkerPlacement("RElbow", "humerus_r", (0.025, -0.297955, -0.008738)),
    MarkerPlacement("RWrist", "radius_r", (-0.000174, -0.235096, 0.009744)),
    MarkerPlacement("RHip", "pelvis", (-0.063927, -0.081343, 0.105406)),
    MarkerPlacement("RKnee", "femur_r", (-0.005410, -0.386132, 0.005111)),
    MarkerPlacement("RAnkle", "tibia_r", (-0.000286, -0.376840, 0.014960)),
    MarkerPlacement("RBigToe", "toes_r", (0.064664, 0.009869, -0.014580)),
    MarkerPlacement("RSmallToe", "toes_r", (0.027117, 0.009572, 0.028780)),
    MarkerPlacement("RHeel", "calcn_r", (0.013586, 0.023304, -0.001887)),
)
# The published placement mirrors left and right in z, but for one marker.
_LEFT_EXCEPTIONS = {"LClavicle": (0.029778, 0.371409, -0.025133)}


def _left(right: MarkerPlacement) -> MarkerPlacement:
    x, y, z = right.location
    name = "L" + right.name[1:]
    return MarkerPlacement(name, right.body.replace("_r", "_l"), _LEFT_EXCEPTIONS.get(name, (x, y, -z)))


PAPER_MARKERS: tuple[MarkerPlacement, ...] = tuple(
    sorted((*_MIDDLE, *_RIGHT, *map(_left, _RIGHT)), key=lambda m: RELEASE_MARKER_NAMES.index(m.name))
)
"""The 33 markers on the paper's model, in the order of the release. Eyes and ears have none."""


def _official_weight(marker: str) -> float:
    if marker == "Nose":
        return 0.1
    if marker == "Head" or marker.endswith(("Clavicle", "Latissimus")):
        return 0.3
    if marker.startswith(("Neck", "Spine")):
        return 0.5
    return 2.0 if marker in ("LShoulder", "RShoulder", "LHip", "RHip") else 1.0


OFFICIAL_MARKER_WEIGHTS = MappingProxyType({m.name: _official_weight(m.name) for m in PAPER_MARKERS})
"""Weights of the official inverse kinematics for the markers on the model."""

OFFICIAL_COORDINATE_TASKS: tuple[CoordinateTarget, ...] = (CoordinateTarget("L5_S1_Flex_Ext", 0.0, 1.0),)
"""The official inverse kinematics' coordinate task. With it, OpenSim holds lumbar flexion almost still."""


def write_paper_marker_set(path: str | os.PathLike[str]) -> None:
    """Writes `PAPER_MARKERS` as an OpenSim marker set.

    Raises:
        SimspineError: the file can't be written.
    """
    from simspine_jax.io.marker_set import MarkerDefinition, write_marker_set

    write_marker_set(path, [MarkerDefinition(*placement) for placement in PAPER_MARKERS])


class KeypointSchema(NamedTuple):
    """What a detector calls its outputs, in their order, by the names of markers on the model."""

    name: str
    markers: tuple[str, ...]


SPINETRACK_37 = KeypointSchema("SPINETRACK_37", TRC_NAMES)
"""SpinePose's output."""

HALPE_26 = KeypointSchema("HALPE_26", TRC_NAMES[:26])
"""Body and feet of Halpe; SpineTrack has extended it, so these are its first 26."""

COCO_17 = KeypointSchema("COCO_17", TRC_NAMES[:17])
"""COCO's, with which Halpe begins."""

BODY_25B = KeypointSchema(
    "BODY_25B",
    (
        *TRC_NAMES[:17], "Neck", "Head",
        "LBigToe", "LSmallToe", "LHeel", "RBigToe", "RSmallToe", "RHeel",
    ),
)  # fmt: skip
"""OpenPose's experimental model, which Pose2Sim recommends."""

BODY_25 = KeypointSchema(
    "BODY_25",
    (
        "Nose", "Neck", "RShoulder", "RElbow", "RWrist", "LShoulder", "LElbow", "LWrist", "Hip",
        "RHip", "RKnee", "RAnkle", "LHip", "LKnee", "LAnkle", "REye", "LEye", "REar", "LEar",
        "LBigToe", "LSmallToe", "LHeel", "RBigToe", "RSmallToe", "RHeel",
    ),
)  # fmt: skip
"""OpenPose's default model: as many keypoints as `BODY_25B`, in another order."""

KEYPOINT_SCHEMAS = MappingProxyType(
    {schema.name: schema for schema in (SPINETRACK_37, HALPE_26, BODY_25B, BODY_25, COCO_17)}
)
"""The orders of keypoints that readers know, by name."""
