"""Rendered pictures: pixels against the renderer itself, visibility on constructed cases, determinism."""

from __future__ import annotations

import ctypes
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType

import jax.numpy as jnp
import numpy as np
import pytest

from simspine_jax.capture import ACTION_NAMES, SUBJECT_NAMES, make_subject
from simspine_jax.capture.appearance import Box, Pattern, Room, draw_outfit, draw_patterns, draw_room
from simspine_jax.capture.capture import capture_trial
from simspine_jax.capture.figure import make_figure
from simspine_jax.capture.rendering import (
    KEYPOINT_DEPTHS_M,
    KEYPOINT_GROUPS,
    TRIAL_S,
    PictureItem,
    keypoint_visibility,
    picture_items,
    pictures_of,
    project_points,
    synthetic_pictures,
)
from simspine_jax.capture.stage import MAX_PX, NOTHING, Shot, Stage, gl_backend
from simspine_jax.capture.tissue import rigid_keypoints
from simspine_jax.errors import ShapeError, SimspineError, UnknownNameError
from simspine_jax.kinematics.forward import forward_kinematics
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.pictures import OCCLUDED, OUTSIDE, VISIBLE, Picture, decode_jpeg
from simspine_jax.skeleton import KEYPOINT_NAMES

pytestmark = pytest.mark.renders  # in a process of its own, without TensorFlow

SIZE = (384, 320)
GREY = Pattern(0, (0.5, 0.5, 0.5))
EMPTY = Room((-9, -9), (9, 9), None, GREY, (GREY,) * 4, (1, 1, 1), (), (), (0.8, 0.8, 0.8))  # type: ignore[arg-type]
ITEM = PictureItem("S1", "Discussion", 3, 8, 11)
# Pixels are whole, and a cube of 6 cm covers about a hundred of them; nearer faces are drawn larger.
CENTER_PX = 0.5

ids = {name: i for i, name in enumerate(KEYPOINT_NAMES)}


@pytest.fixture(scope="module")
def standing(spine_model: SpineModel) -> Iterator[tuple[Stage, np.ndarray]]:
    """A subject on the stage with hanging arms, above the floor, and its keypoints."""
    try:
        gl_backend()
    except SimspineError as error:
        pytest.skip(str(error))
    subject = make_subject(spine_model, "S8")
    figure = make_figure(spine_model, subject)
    up = np.array([0.0, 1.1, 0.0])
    poses = forward_kinematics(
        spine_model,
        jnp.zeros(spine_model.n_free).at[spine_model.free_indices(["pro_sup_r", "pro_sup_l"])].set(1.2),
        scale_factors=subject.scale_factors,
        marker_offsets=subject.marker_offsets,
    )
    keypoints = np.asarray(rigid_keypoints(spine_model, poses, subject.scale_factors)) + up
    with Stage(figure, draw_patterns(np.random.default_rng(0))) as stage:
        stage.pose(np.asarray(poses.body_positions) + up, np.asarray(poses.body_rotations))
        stage.dress(draw_outfit(np.random.default_rng(4)))
        stage.furnish(EMPTY)
        yield stage, keypoints


class View:
    """A camera at this place that looks at another; x right, y down."""

    def __init__(
        self, eye: tuple[float, ...], aim: tuple[float, ...] = (-0.05, 0.95, 0.0), focal: float = 400
    ):
        forward = np.subtract(aim, eye) / np.linalg.norm(np.subtract(aim, eye))
        right = np.cross(forward, [0.05, 1.0, 0.02])
        right /= np.linalg.norm(right)
        self.rotation = np.stack([right, np.cross(forward, right), forward])
        self.translation = -self.rotation @ np.array(eye)
        self.matrix = np.array([[focal, 0, 140.3], [0, focal, 205.8], [0, 0, 1]])

    def shoot(self, stage: Stage) -> Shot:
        return stage.shoot(self.matrix, self.rotation, self.translation, SIZE)

    def see(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        local = points @ self.rotation.T + self.translation
        return project_points(self.matrix, local), local[:, 2]

    def visibility(self, stage: Stage, points: np.ndarray) -> np.ndarray:
        return keypoint_visibility(self.shoot(stage), stage.figure, *self.see(points))


FRONT, BACK, RIGHT = View((3.0, 1.2, 0.3)), View((-3.0, 1.3, 0.2)), View((0.2, 1.1, 3.0))


def box_at(place: np.ndarray, half: float | tuple[float, float, float]) -> Box:
    halves = (half, half, half) if isinstance(half, float) else half
    return Box(tuple(place), halves, 0.3, Pattern(0, (1.0, 0.1, 0.1)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "view", [FRONT, View((-2.0, 0.4, 2.2), focal=300), View((1.5, 2.2, -2.6), focal=450)]
)
def test_keypoints_are_where_the_renderer_draws_them(standing: tuple[Stage, np.ndarray], view: View) -> None:
    """A cube at each keypoint alone: the pixels that it changes lie about the keypoint's."""
    stage, keypoints = standing
    shown = stage.model.skin_group.copy()
    stage.show_only(())
    try:
        before = view.shoot(stage)
        pixels, depths = view.see(keypoints)
        checked = 0
        for point, pixel, depth in zip(keypoints, pixels, depths, strict=True):
            if not ((pixel > 6) & (pixel < np.array(SIZE[::-1]) - 7)).all():
                continue
            stage.furnish(replace(EMPTY, furniture=(box_at(point, 0.03),)))
            after = view.shoot(stage)
            rows, columns = np.nonzero(after.depth < before.depth - 0.1)
            assert abs(columns.mean() - pixel[0]) < CENTER_PX
            assert abs(rows.mean() - pixel[1]) < CENTER_PX
            nearest = after.depth[rows, columns].min()
            assert depth - 0.055 < nearest < depth
            assert (after.pixels[rows, columns, 0] > 2 * after.pixels[rows, columns, 1].astype(int)).all()
            checked += 1
        assert checked > 30
    finally:
        stage.model.skin_group[:] = shown
        stage.furnish(EMPTY)


def test_the_spine_is_seen_from_the_back_and_the_face_from_the_front(
    standing: tuple[Stage, np.ndarray],
) -> None:
    stage, keypoints = standing
    back, front = BACK.visibility(stage, keypoints), FRONT.visibility(stage, keypoints)
    spine = [ids[name] for name in ("hip", *(f"spine_0{i}" for i in range(1, 6)))]
    latissimus = [ids["left_latissimus"], ids["right_latissimus"]]
    face = [ids[name] for name in ("nose", "left_eye", "right_eye")]
    assert (back[spine + latissimus] == VISIBLE).all()
    assert (front[spine + latissimus] == OCCLUDED).all()
    assert (front[face] == VISIBLE).all()
    assert (back[face] == OCCLUDED).all()
    # Joints lie in the middle of limbs: they are seen from either side.
    limbs = [
        ids[f"{s}_{p}"] for s in ("left", "right") for p in ("shoulder", "elbow", "hip", "knee", "ankle")
    ]
    assert (back[limbs] == VISIBLE).all()
    assert (front[limbs] == VISIBLE).all()


def test_an_arm_behind_the_trunk_is_occluded(standing: tuple[Stage, np.ndarray]) -> None:
    stage, keypoints = standing
    side = RIGHT.visibility(stage, keypoints)
    far = [ids[f"left_{part}"] for part in ("shoulder", "elbow", "hip", "knee", "ear")]
    near = [ids[f"right_{part}"] for part in ("shoulder", "elbow", "wrist", "knee", "ear")]
    assert (side[far] == OCCLUDED).all()
    assert (side[near] == VISIBLE).all()
    assert side[ids["right_hip"]] == OCCLUDED  # by the hand that hangs beside it


def test_a_box_in_front_occludes_what_is_behind_it_alone(standing: tuple[Stage, np.ndarray]) -> None:
    stage, keypoints = standing
    clear = FRONT.visibility(stage, keypoints)
    stage.furnish(replace(EMPTY, furniture=(box_at(np.array([0.5, 0.42, 0.0]), (0.1, 0.42, 0.6)),)))
    try:
        hidden = FRONT.visibility(stage, keypoints)
    finally:
        stage.furnish(EMPTY)
    legs = [ids[f"{side}_{part}"] for side in ("left", "right") for part in ("knee", "ankle", "big_toe")]
    above = keypoints[:, 1] > 1.1
    assert (clear[legs] == VISIBLE).all()
    assert (hidden[legs] == OCCLUDED).all()
    assert (hidden[above] == clear[above]).all()


def test_what_is_not_in_the_picture_is_outside(standing: tuple[Stage, np.ndarray]) -> None:
    stage, keypoints = standing
    near = View((1.0, 1.6, 0.0), (0.0, 1.6, 0.0))
    seen = near.visibility(stage, keypoints)
    pixels, _ = near.see(keypoints)
    inside = ((pixels > -0.5) & (pixels < np.array(SIZE[::-1]) - 0.5)).all(axis=-1)
    assert 5 < inside.sum() < 30
    assert ((seen == OUTSIDE) == ~inside).all()


def test_depths_of_keypoints_are_those_of_the_figure(standing: tuple[Stage, np.ndarray]) -> None:
    """The least that lies in front of a keypoint, from all around, is its depth under the skin."""
    stage, keypoints = standing
    least = np.full(37, np.inf)
    for turn in np.arange(16) * np.pi / 8:
        for height in (0.3, 1.0, 2.6):
            view = View((3 * np.cos(turn), height, 3 * np.sin(turn)))
            shot, (pixels, depths) = view.shoot(stage), view.see(keypoints)
            column, row = pixels.round().astype(int).clip(0, (SIZE[1] - 1, SIZE[0] - 1)).T
            for k, label in enumerate(shot.labels[row, column].tolist()):
                if label != NOTHING and stage.figure.surfaces[label].group in KEYPOINT_GROUPS[k]:
                    least[k] = min(least[k], depths[k] - shot.depth[row[k], column[k]])
    # Offsets of markers and sizes differ by subject, and clothes have 4 to 21 mm of room.
    assert (least > KEYPOINT_DEPTHS_M - 0.012).all(), dict(zip(KEYPOINT_NAMES, least.round(3), strict=True))
    assert (least < KEYPOINT_DEPTHS_M + 0.035).all(), dict(zip(KEYPOINT_NAMES, least.round(3), strict=True))


def test_the_figure_stands_without_gaps(standing: tuple[Stage, np.ndarray]) -> None:
    """From in front the person is one piece of a person's size."""
    import cv2

    stage, _ = standing
    for view in (FRONT, BACK, RIGHT):
        person = (view.shoot(stage).labels != NOTHING).astype(np.uint8)
        _, _, stats, _ = cv2.connectedComponentsWithStats(person)
        areas = np.sort(stats[1:, cv2.CC_STAT_AREA])
        assert areas[:-1].sum() < 0.002 * areas[-1]
        height_m = stats[1:, cv2.CC_STAT_HEIGHT].max() / 400 * 3.0
        assert 1.7 < height_m < 2.0  # S8 is 1.82 m tall; perspective adds a few centimetres


def test_the_stage_refuses_what_it_cannot_show(standing: tuple[Stage, np.ndarray]) -> None:
    stage, _ = standing
    with pytest.raises(ShapeError, match=f"valid is 1 to {MAX_PX}"):
        stage.shoot(FRONT.matrix, FRONT.rotation, FRONT.translation, (384, 4000))
    with pytest.raises(ShapeError, match="square"):
        stage.shoot(np.diag([400.0, 401.0, 1.0]), FRONT.rotation, FRONT.translation, SIZE)
    with pytest.raises(ShapeError, match="boxes"):
        stage.furnish(replace(EMPTY, furniture=(box_at(np.zeros(3), 0.1),) * 99))


@pytest.fixture(scope="module")
def pictures(spine_model: SpineModel, standing: tuple[Stage, np.ndarray]) -> dict[str, Picture]:
    return dict(pictures_of(spine_model, ITEM))


def test_pictures_tell_where_keypoints_are(spine_model: SpineModel, pictures: dict[str, Picture]) -> None:
    assert next(iter(pictures)) == "S1_Discussion_00003"
    assert len(pictures) == ITEM.count
    subject = make_subject(spine_model, ITEM.subject, ITEM.seed)
    truth = np.asarray(capture_trial(spine_model, subject, ITEM.action, TRIAL_S, seed=ITEM.seed).keypoints)
    for picture in pictures.values():
        local = truth[picture.frame] @ picture.camera_rotation.T + picture.camera_translation
        assert np.abs(local - picture.keypoints_3d).max() < 1e-5  # float32 at some metres
        homogeneous = local @ picture.camera_matrix.T
        assert np.abs(homogeneous[:, :2] / homogeneous[:, 2:] - picture.keypoints_2d).max() < 1e-3
        assert decode_jpeg(picture.jpeg).shape == (picture.height, picture.width, 3)
        assert (picture.visibility == VISIBLE).sum() >= 6
        left, top, width, height = picture.box
        seen = picture.keypoints_2d[picture.visibility == VISIBLE]
        # Keypoints that count as seen lie at most a few pixels outside of the silhouette's box.
        assert (seen > np.array([left, top]) - 8).all()
        assert (seen < np.array([left + width, top + height]) + 8).all()
        assert 0.1 * width * height < picture.area < width * height
    assert Counter(p.camera for p in pictures.values())["free"] == 4
    assert len({p.appearance_seed for p in pictures.values()}) == ITEM.count


def test_the_same_seed_gives_the_same_bytes(spine_model: SpineModel, pictures: dict[str, Picture]) -> None:
    again = dict(pictures_of(spine_model, ITEM))
    assert [p.jpeg for p in again.values()] == [p.jpeg for p in pictures.values()]
    assert all((again[key].visibility == p.visibility).all() for key, p in pictures.items())
    other = dict(pictures_of(spine_model, replace(ITEM, seed=12, count=1)))
    assert other["S1_Discussion_00003"].jpeg != pictures["S1_Discussion_00003"].jpeg


def test_a_set_is_made_item_by_item(spine_model: SpineModel, standing: tuple[Stage, np.ndarray]) -> None:
    """Two pictures of the set, the first and one of another action, are those of their items."""
    made = synthetic_pictures(spine_model, subjects=("S9",), count=15, seed=2)
    keys = [next(made) for _ in range(2)]
    assert [key for key, _ in keys] == ["S9_Directions_00000", "S9_Discussion_00001"]
    item = picture_items(subjects=("S9",), count=15, seed=2)[1]
    ((key, alone),) = pictures_of(spine_model, item)
    assert (key, alone.jpeg) == (keys[1][0], keys[1][1].jpeg)


@pytest.mark.parametrize("count", [1, 104, 105, 1000])
def test_items_share_the_count_evenly(count: int) -> None:
    items = picture_items(count=count, seed=1)
    assert sum(item.count for item in items) == count
    assert [item.first for item in items] == np.cumsum([0, *(i.count for i in items[:-1])]).tolist()
    if count >= 105:
        assert {(i.subject, i.action) for i in items} == {(s, a) for s in SUBJECT_NAMES for a in ACTION_NAMES}
        assert max(i.count for i in items) - min(i.count for i in items) <= 1


def test_items_refuse_what_is_unknown() -> None:
    with pytest.raises(UnknownNameError, match="Subject 'S2'"):
        picture_items(subjects=("S2",))
    with pytest.raises(UnknownNameError, match="Action 'Running'"):
        picture_items(actions=("Running",))
    with pytest.raises(ShapeError, match="0 pictures"):
        picture_items(count=0)
    with pytest.raises(ShapeError, match="seed"):
        picture_items(seed=-1)


@pytest.mark.parametrize("occlude", [True, False])
def test_rooms_hold_person_and_camera(occlude: bool) -> None:
    people = np.array([[0.0, 0.0, 0.0], [0.2, 1.8, 0.3], [-0.3, 1.0, -0.2]])
    for seed in range(40):
        random = np.random.default_rng(seed)
        camera = np.array([3.0, 1.5, -1.0])
        room = draw_room(random, people, camera, None, occlude)
        for point in (*people, camera):
            assert room.low[0] < point[0] < room.high[0]
            assert room.low[1] < point[2] < room.high[1]
        for box in room.furniture:
            away = np.hypot(people[:, 0] - box.center[0], people[:, 2] - box.center[2])
            assert (away > np.hypot(box.half[0], box.half[2])).all()
            assert box.center[1] == pytest.approx(box.half[1])


def test_a_machine_without_gl_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    with pytest.raises(SimspineError, match="libegl1 libegl-mesa0 libgl1-mesa-dri or libosmesa6"):
        gl_backend()


def test_it_is_refused_where_tensorflow_would_make_it_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", ModuleType("tensorflow"))
    with pytest.raises(SimspineError, match="valid is a process of its own"):
        gl_backend()
