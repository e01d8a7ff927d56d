"""Lifting files: keypoints of one camera to positions, and with a body model to joint angles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from simspine_jax.clips import cameras_in_ground
from simspine_jax.errors import FileFormatError, SimspineError, UnknownNameError, listed
from simspine_jax.geometry.cameras import Cameras, normalised_from_pixels, undistort
from simspine_jax.io import MarkerTrajectory, write_trc
from simspine_jax.io.calibration import read_cameras
from simspine_jax.io.files import make_folder, place
from simspine_jax.io.keypoints import (
    Keypoints2D,
    main_person,
    read_coco_results,
    read_keypoints_npz,
    read_openpose_folder,
)
from simspine_jax.io.npz import write_npz
from simspine_jax.kinematics.forward import forward_kinematics
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.lifting.body import SIZE_GROUPS
from simspine_jax.lifting.kinematic import KinematicLifter
from simspine_jax.lifting.observations import Lifted, LiftedBody, Observation
from simspine_jax.motions import Motion, write_motion
from simspine_jax.pipeline.sources import camera_of
from simspine_jax.skeleton import KEYPOINT_NAMES, TRC_NAMES, trc_name
from simspine_jax.training.data import KEYPOINTS
from simspine_jax.training.evaluation import lift as lift_batch
from simspine_jax.training.models import LifterModule
from simspine_jax.training.run import Run

R_YUP_CAMERA = np.diag([1.0, -1.0, -1.0])
"""From a camera's axes (y down, z forward) to Y-up ones, where nothing is known of its place."""

FRAMES = 512
"""Frames lifted at once; the last ones are filled up to so many."""


@dataclass(frozen=True, eq=False)
class LiftedTrial:
    """A lifted sequence of one view.

    Attributes:
        times: ``[T]`` s.
        rate_hz: frames per second.
        keypoint_names: TRC names.
        positions: ``[T K 3]`` m, Y up; NaN in frames without a keypoint. In the ground frame of the cameras
            where the camera's place is known and the lifter tells the root's, else from the root keypoint.
        q: ``[T Q]`` free coordinates of the spine model, rad and m; None without a body.
        log_scales: ``[G]`` of `SIZE_GROUPS`, one for the whole sequence; None without a body.
        frame: of the positions, in words.
    """

    times: NDArray[np.float64]
    rate_hz: float
    keypoint_names: tuple[str, ...]
    positions: NDArray[np.float64]
    q: NDArray[np.float64] | None = None
    log_scales: NDArray[np.float64] | None = None
    frame: str = ""


def read_view(path: Path, view: str | None, *, schema: str | None, rate_hz: float | None) -> Keypoints2D:
    """The keypoints of one camera.

    Args:
        path: an ``.npz``, a COCO results ``.json``, a folder with OpenPose's files, or one of such folders.
        view: the camera's name, or a part of it that is no other's, as the calibration may have it; None
            where there is one camera.
        schema: order of keypoints, where files don't say it.
        rate_hz: frames per second, likewise.

    Raises:
        FileFormatError: there are no keypoints in it.
        SimspineError: there are several cameras and no name, or no rate.
        UnknownNameError: there is no such camera.
    """
    if path.is_dir():
        found = main_person(read_openpose_folder(path, schema=schema, rate_hz=rate_hz))
    elif path.suffix.lower() == ".npz":
        found = read_keypoints_npz(path)
    elif path.suffix.lower() == ".json":
        found = main_person(read_coco_results({path.stem: path}, schema=schema, rate_hz=rate_hz))
    else:
        raise FileFormatError(
            f"{place(path)} holds no keypoints; valid are an .npz, a COCO results .json, and a folder with a "
            "folder of JSON files for each camera"
        )
    names = found.camera_names
    if view is None and len(names) > 1:
        raise SimspineError(
            f"{place(path)} has {len(names)} cameras; valid is --view with one of {', '.join(names)}"
        )
    # A COCO file has no camera's name but its own.
    lone = len(names) == 1 and path.is_file() and path.suffix.lower() == ".json"
    i = 0 if view is None or lone else _view_of(view, names)
    if i is None:
        raise UnknownNameError("Camera", str(view), place(path), names)
    rate = rate_hz or found.rate_hz
    if rate is None:
        raise SimspineError(
            f"{place(path)} does not say its frame rate; valid is --rate with frames per second"
        )
    return Keypoints2D(
        (names[i],), found.keypoint_names, found.positions[:, i : i + 1], found.confidence[:, i : i + 1],
        rate, found.first_frame,
    )  # fmt: skip


def _view_of(view: str, names: Sequence[str]) -> int | None:
    """Which of the keypoints' cameras is meant, by their names or the calibration's."""
    if view in names:
        return names.index(view)
    meant = [i for i, name in enumerate(names) if camera_of(name, [view]) is not None]
    return meant[0] if len(meant) == 1 else None


def read_camera(
    path: Path | None, view: str, subject: str | None, given: str | None = None
) -> Cameras | None:
    """The camera of a view: the one that its name means (see `sources.matched_views`), or the only one.

    ``given`` is another name, which counts where the view's own means none.

    Raises:
        FileFormatError: the calibration can't be read.
        UnknownNameError: it has several cameras and none of this name.
    """
    if path is None:
        return None
    cameras = read_cameras(path, subject=subject)
    if len(cameras.names) == 1:
        return cameras
    meant = [i for name in (view, given) if name and (i := camera_of(name, cameras.names)) is not None]
    return cameras.select([cameras.names[meant[0]] if meant else view])


SEEN_SHARE = 0.05
"""Of frames; a keypoint that fewer show counts as not detected."""

FAR_DEVIATIONS = 3.0
"""Of the training's pixels; keypoints that are so far off on average are of other pictures."""


def view_remarks(run: Run, model: LifterModule, view: Keypoints2D) -> list[str]:
    """What makes a result doubtful: keypoints that aren't there, and pictures unlike the training's."""
    names = tuple(trc_name(name) for name in KEYPOINTS[run.data.keypoints])
    seen = _observation(run, view, names, None)
    mask = np.asarray(seen.mask)
    remarks = []
    if lost := [name for name, share in zip(names, mask.mean(axis=0), strict=True) if share < SEEN_SHARE]:
        remarks.append(
            f"{len(lost)} of the lifter's {len(names)} keypoints are not in the file ({listed(lost, 6)}); "
            "where they are is a guess of the lifter's"
        )
    held = getattr(model, "statistics", None)
    statistics = None if held is None else held.get_value()
    if statistics is not None and not isinstance(model, KinematicLifter):  # which sees rays
        off = (np.asarray(seen.pixels) - np.asarray(statistics.mean_2d)) / np.asarray(statistics.std_2d)
        spread = float(np.sqrt(np.mean(off[mask] ** 2)))
        if spread > FAR_DEVIATIONS:
            remarks.append(
                f"the keypoints are {spread:.1f} deviations of the training's pixels away from their mean; "
                "this lifter sees pixels, so pictures of another size or cameras of another kind need to be "
                "scaled, or another training"
            )
    return remarks


def lift_view(run: Run, model: LifterModule, view: Keypoints2D, camera: Cameras | None) -> LiftedTrial:
    """Lifts a sequence.

    Args:
        run: of the model.
        model: trained.
        view: of one camera.
        camera: its calibration, in a Z-up world; the kinematic lifter needs it.

    Raises:
        SimspineError: the lifter needs a camera and there is none.
    """
    if camera is None and isinstance(model, KinematicLifter):
        raise SimspineError("The kinematic lifter needs the camera; valid is --camera with its calibration")
    names = tuple(trc_name(name) for name in KEYPOINTS[run.data.keypoints])
    placed = None if camera is None else cameras_in_ground(camera)
    seen = _observation(run, view, names, placed)
    lifted = _in_parts(run, model, seen)
    if isinstance(model, KinematicLifter) and lifted.body is not None:
        known = _seen(seen)
        sizes = np.asarray(lifted.body.log_scales)
        one = sizes[known].mean(axis=0) if known.any() else sizes[0]
        lifted = jax.tree.map(np.asarray, model.posed(lifted.body, jnp.asarray(one)))
    return _trial(model, view, names, lifted, placed, _seen(seen))


def _seen(seen: Observation) -> NDArray[np.bool_]:
    """[T] frames with a keypoint."""
    return np.asarray(np.asarray(seen.mask).any(axis=-1))


def _observation(run: Run, view: Keypoints2D, names: tuple[str, ...], camera: Cameras | None) -> Observation:
    count = len(view.positions)
    pixels = np.full((count, len(names), 2), np.nan, np.float32)
    confidence = np.zeros((count, len(names)), np.float32)
    # Files have TRC names, or those of the vocabulary.
    given = [trc_name(name) if name in KEYPOINT_NAMES else name for name in view.keypoint_names]
    for k, name in enumerate(names):
        if name in given:
            there = given.index(name)
            pixels[:, k] = view.positions[:, 0, there]
            confidence[:, k] = np.clip(np.nan_to_num(view.confidence[:, 0, there]), 0, 1)
    mask = np.asarray(np.isfinite(pixels).all(axis=-1))
    if not mask.any():
        raise SimspineError(
            f"No frame has a keypoint of the lifter's among {listed(view.keypoint_names, 4)}; valid are some "
            f"of {listed(names, 4)}"
        )
    rays, up = np.zeros_like(pixels), np.array([0.0, -1.0, 0.0], np.float32)
    if camera is not None:
        points = jnp.asarray(pixels)[..., None, :]
        rays = np.asarray(undistort(camera, normalised_from_pixels(camera, points)))[..., 0, :]
        up = np.asarray(camera.rotations, np.float32)[0, :, 1]
    pixels, rays = (jnp.asarray(np.where(mask[..., None], x, 0)) for x in (pixels, rays))
    ups = jnp.asarray(np.broadcast_to(up, (count, 3)))
    names = KEYPOINTS[run.data.keypoints]
    return Observation(pixels, jnp.asarray(mask), jnp.asarray(confidence), rays, ups, names)


def _in_parts(run: Run, model: LifterModule, seen: Observation) -> Lifted:
    """Frames, or windows side by side, of fixed sizes; what is filled up is masked and left out again."""
    count, window = len(seen.mask), run.frames
    size = FRAMES if window is None else window * max(FRAMES // window, 1)
    parts = []
    for first in range(0, count, size):
        rows = np.arange(first, first + size)
        part = jax.tree.map(lambda leaf, rows=rows: leaf[np.minimum(rows, count - 1)], seen)
        part = replace(part, mask=part.mask & (rows < count)[:, None])
        if window is not None:
            part = jax.tree.map(lambda leaf: leaf.reshape(-1, window, *leaf.shape[1:]), part)
        found = jax.tree.map(np.asarray, lift_batch(model, part))
        if window is not None:
            found = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)
        parts.append(found)
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)


def _trial(
    model: LifterModule,
    view: Keypoints2D,
    names: tuple[str, ...],
    lifted: Lifted,
    camera: Cameras | None,
    known: NDArray[np.bool_],
) -> LiftedTrial:
    assert view.rate_hz is not None
    turn, shift = R_YUP_CAMERA, np.zeros(3)
    if camera is not None:
        turn = np.asarray(camera.rotations)[0].T
        shift = -turn @ np.asarray(camera.translations)[0]
    local = np.asarray(lifted.keypoints, np.float64)
    pose = lifted.body
    if pose is None:
        shift = np.zeros(3)
    else:
        local = local + np.asarray(pose.root, np.float64)[:, None]
    positions = np.where(known[:, None, None], local @ turn.T + shift, np.nan)
    times = (view.first_frame + np.arange(len(local))) / view.rate_hz
    axes = "the camera's axes turned to Y up" if camera is None else "ground's axes (Y up)"
    origin = "the ground's origin" if pose is not None and camera is not None else "the root keypoint"
    trial = LiftedTrial(times, view.rate_hz, names, positions, frame=f"in m from {origin}, {axes}")
    if pose is None or not isinstance(model, KinematicLifter):
        return trial
    q = _with_root(model, pose, turn, positions[:, TRC_NAMES.index("Hip")])
    return replace(trial, q=np.where(known[:, None], q, np.nan), log_scales=np.asarray(pose.log_scales)[0])


def _with_root(model: KinematicLifter, pose: LiftedBody, turn: NDArray, hip: NDArray) -> NDArray[np.float64]:
    """Free coordinates with the pelvis where it is in the frame of the positions."""
    spine = model.body.model
    root = spine.root
    assert root is not None
    rotation = turn @ np.asarray(pose.pelvis_rotation, np.float64)
    rest, axes = np.array(root.rest), np.array(root.hinge_axes)
    q = np.array(pose.q, np.float64)
    # The hinges' axes are square to each other: their angles are Euler's in the frame of these axes.
    frame = axes * np.sign(np.linalg.det(axes))
    turned = np.einsum("ij,jk,nkl,ml->nim", frame, rest.T, rotation, frame)
    angles = Rotation.from_matrix(turned).as_euler("XYZ") * np.sign(np.linalg.det(axes))
    q[:, list(root.hinges)] = angles
    # The root keypoint is where the pelvis' own marker is; the slides carry what is left.
    factors = model.body.scale_factors(jnp.asarray(pose.log_scales)[0])
    poses = forward_kinematics(spine, jnp.asarray(q, jnp.float32), scale_factors=factors)
    markers = np.asarray(poses.markers, np.float64)
    left = hip - markers[:, spine.marker_names.index("Hip")]
    q[:, list(root.slides)] = left @ np.array(root.slide_axes).T
    return q


def write_lifted(path: Path, trial: LiftedTrial, spine: Callable[[], SpineModel]) -> list[Path]:
    """Writes a trial in the format of the file's ending; a name without one gets all that there are.

    Args:
        path: ``.npz``, ``.trc`` or ``.mot``, or a name without ending.
        trial: lifted.
        spine: gives the spine model, for ``.mot``.

    Raises:
        SimspineError: ``.mot`` is asked of a lifter without a body, or the ending is another one.
    """
    endings = (
        [path.suffix.lower()] if path.suffix else [".npz", ".trc", *([".mot"] if trial.q is not None else [])]
    )
    if path.parent != Path():
        make_folder(path.parent)
    written = []
    for ending in endings:
        target = path.with_suffix(ending)
        if ending == ".mot":
            _write_motion(target, trial, spine)
        elif ending == ".trc":
            positions = MarkerTrajectory(trial.keypoint_names, trial.times, trial.positions, trial.rate_hz)
            write_trc(target, positions, "mm")
        elif ending == ".npz":
            write_npz(target, _arrays(trial))
        else:
            raise SimspineError(f"Can't write '{path}'; valid is a name that ends in .npz, .trc or .mot")
        written.append(target)
    return written


def _write_motion(path: Path, trial: LiftedTrial, spine: Callable[[], SpineModel]) -> None:
    if trial.q is None:
        raise SimspineError(
            f"Can't write '{path}': this lifter has no joint angles; valid are .npz and .trc, which "
            "'simspine ik' solves for angles"
        )
    write_motion(path, spine(), Motion(trial.times, trial.q))


def _arrays(trial: LiftedTrial) -> dict[str, NDArray]:
    arrays = {
        "times": trial.times, "rate_hz": np.array(trial.rate_hz), "positions": trial.positions,
        "keypoint_names": np.array(trial.keypoint_names), "frame": np.array(trial.frame),
    }  # fmt: skip
    if trial.q is not None and trial.log_scales is not None:
        groups = np.array([group.name for group in SIZE_GROUPS])
        arrays |= {"q": trial.q, "sizes": np.exp(trial.log_scales), "size_names": groups}
    return arrays
