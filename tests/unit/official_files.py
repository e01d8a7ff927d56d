"""Files of the official release, written from its published schema alone, with made-up numbers.

Nothing here uses the project's own writers, and nothing is licensed: the "people" are random numbers of a
person's size around an upright column.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

MARKERS = (
    "Hip", "Spine_01", "Spine_02", "Spine_03", "Spine_04", "Spine_05", "Neck", "Neck_02", "Neck_03", "Head",
    "Nose", "REye", "LEye", "REar", "LEar", "RLatissimus", "LLatissimus", "RClavicle", "RShoulder", "RElbow",
    "RWrist", "LClavicle", "LShoulder", "LElbow", "LWrist", "RHip", "RKnee", "RAnkle", "RBigToe", "RSmallToe",
    "RHeel", "LHip", "LKnee", "LAnkle", "LBigToe", "LSmallToe", "LHeel",
)  # fmt: skip
REDUCED = (
    "Hip", "Spine_01", "Spine_02", "Spine_03", "Spine_04", "Spine_05", "Neck", "Neck_02", "Neck_03", "Head",
    "Nose", "LClavicle", "RClavicle", "LLatissimus", "RLatissimus",
)  # fmt: skip
CAMERAS = ("54138969", "55011271")
TRIALS = (("S1", "Walking"), ("S1", "Walking_1"), ("S9", "Sitting_2"))
N_FRAMES = 12
RATE_HZ = 50.0

# Cameras stand two ways from the person, upright, and look at it: rows of R are right, down and forward.
ROTATIONS = np.array([[[0, 1, 0], [0, 0, -1], [-1, 0, 0]], [[-1, 0, 0], [0, 0, -1], [0, -1, 0]]], float)
TRANSLATIONS = np.array([[0.1, 1.0, 4.0], [-0.2, 1.1, 5.0]])
K = np.array([[[1145.0, 0, 512], [0, 1143, 515], [0, 0, 1]], [[1149.0, 0, 508], [0, 1147, 508], [0, 0, 1]]])
DISTORTION = np.array([[-0.2, 0.24, -0.001, -0.0014, -0.002], [-0.19, 0.21, -0.0005, 0.0012, -0.003]])


def random_of(subject: str, stem: str) -> np.random.Generator:
    """Numbers that are the same in each file for a trial."""
    return np.random.default_rng([ord(c) for c in subject + stem])


def markers_of(subject: str, stem: str) -> np.ndarray:
    """[T 37 3] m, Y up."""
    random = random_of(subject, stem)
    person = random.uniform(-0.3, 0.3, (len(MARKERS), 3)) + np.array([0, 0.9, 0])
    person[:, 1] += np.linspace(-0.5, 0.5, len(MARKERS))
    return person + 0.02 * random.standard_normal((N_FRAMES, len(MARKERS), 3))


def axes_of(subject: str, stem: str, names: tuple[str, ...]) -> np.ndarray:
    """[T 62] as OpenSim writes them: degrees, and metres; a knee bends by 40 degrees."""
    table = random_of(subject, stem).uniform(-0.9, 0.9, (N_FRAMES, len(names)))
    table[:, names.index("knee_angle_r")] += 40
    return table


def write_h5(path: Path, axes: tuple[str, ...], trials: tuple[tuple[str, str], ...] = TRIALS) -> None:
    """``simspine.h5``."""
    with h5py.File(path, "w") as file:
        file["metadata/markers_names"] = np.array(MARKERS, dtype=h5py.string_dtype())
        file["metadata/kinematic_axes"] = np.array(axes, dtype=h5py.string_dtype())
        for subject, stem in trials:
            if subject not in file:
                group = file.create_group(f"{subject}/calibration")
                group["names"] = np.array(CAMERAS, dtype=h5py.string_dtype())
                group["K"], group["dist"], group["R"], group["t"] = K, DISTORTION, ROTATIONS, TRANSLATIONS
                group["size"] = np.array([[1000, 1002], [1000, 1000]])
                file[subject].attrs["model_file"] = f"models/{subject}.osim"
            file[f"{subject}/{stem}/markers"] = markers_of(subject, stem)
            file[f"{subject}/{stem}/kinematics"] = axes_of(subject, stem, axes)
            file[f"{subject}/{stem}/timestamps"] = np.arange(N_FRAMES) / RATE_HZ


def write_toml(path: Path) -> None:
    """``cameras/Calib_<subject>.toml`` in Pose2Sim's manner: R as a rotation vector."""
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for name, k, dist, R, t in zip(CAMERAS, K, DISTORTION, ROTATIONS, TRANSLATIONS, strict=True):
        vector = cv2.Rodrigues(R)[0].ravel()
        lines += [
            f"[cam_{name}]", f'name = "{name}"', "size = [1000.0, 1000.0]",
            f"matrix = {k.tolist()}", f"distortions = {dist[:4].tolist()}",
            f"rotation = {vector.tolist()}", f"translation = {t.tolist()}", "fisheye = false", "",
        ]  # fmt: skip
    path.write_text("\n".join(lines))


def write_npz(
    path: Path,
    axes: tuple[str, ...],
    trials: tuple[tuple[str, str], ...] = TRIALS,
    *,
    official_camera_space: bool = True,
    frames: tuple[int, ...] = tuple(range(N_FRAMES)),
) -> None:
    """Samples in MMPose's manner, camera after camera; camera space is R (X - t) as the exporter has it."""
    rows: dict[str, list] = {
        key: [] for key in ("imgname", "center", "scale", "part", "S", "S_world", "angles")
    }
    columns = [MARKERS.index(name) for name in REDUCED]
    for subject, stem in trials:
        yup = markers_of(subject, stem)[:, columns]
        world = yup[..., [2, 0, 1]]  # (x, y, z) of the files is (Y, Z, X) of the world
        angles = axes_of(subject, stem, axes)
        for camera, k, R, t in zip(CAMERAS, K, ROTATIONS, TRANSLATIONS, strict=True):
            local = world @ R.T + t
            pixels = local @ k.T
            pixels = pixels[..., :2] / pixels[..., 2:]
            seen = ((pixels >= 0) & (pixels < 1000)).all(axis=-1, keepdims=True).astype(float)
            space = (world - t) @ R.T if official_camera_space else local
            for frame in frames:
                prefix = f"{subject}_{stem}.{camera}"
                rows["imgname"].append(f"{subject}/{prefix}/{prefix}_{frame:06d}.jpg")
                rows["center"].append(pixels[frame].mean(axis=0))
                rows["scale"].append(2.0)
                rows["part"].append(np.concatenate([pixels[frame], seen[frame]], axis=-1))
                rows["S"].append(np.concatenate([space[frame], seen[frame]], axis=-1))
                rows["S_world"].append(np.concatenate([world[frame], seen[frame]], axis=-1))
                rows["angles"].append(angles[frame])
    metadata = np.array({"root_name": "Hip", "joint_names": list(REDUCED)}, dtype=object)
    np.savez(path, metadata=metadata, **{key: np.array(value) for key, value in rows.items()})
