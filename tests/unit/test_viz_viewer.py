"""The browser viewer's parts: clips, meshes, the page, the live controls. How it looks is in end_to_end."""

from __future__ import annotations

import dataclasses
import shutil
import socket
import sys

import jax
import numpy as np
import pytest

from simspine_jax import forward_kinematics
from simspine_jax.capture import synthetic_motion
from simspine_jax.errors import FileFormatError, MissingDependencyError, ShapeError, SimspineError
from simspine_jax.io.sidecar import GeometryDescription, read_sidecar, write_sidecar
from simspine_jax.kinematics.model import converted_path
from simspine_jax.viz import viewer
from simspine_jax.viz.bones import BodyMesh, capsule_figure, read_bones, read_stl
from simspine_jax.viz.ellipsoids import LONGEST_M, Ellipsoids, ellipsoids_of

TETRAHEDRON = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], float)
FACES = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
# The scene holds float32.
FLOAT32_M = 1e-6
# Ellipsoids are sent as exactly as 16 bits make them.
FLOAT16 = 1e-3


def write_stl(path, vertices=TETRAHEDRON, faces=FACES):
    triangles = np.zeros(
        len(faces), np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("rest", "<u2")])
    )
    triangles["corners"] = vertices[faces]
    path.write_bytes(bytes(80) + np.uint32(len(faces)).tobytes() + triangles.tobytes())


def volume(mesh: BodyMesh) -> float:
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


@pytest.fixture(scope="module")
def q(spine_model):
    return synthetic_motion(spine_model, 7, 50.0, 0)


@pytest.fixture(scope="module")
def poses(spine_model, q):
    return jax.jit(forward_kinematics)(spine_model, q)


@pytest.fixture(scope="module")
def clip(spine_model, q, poses):
    targets = np.array(poses.markers) + 0.01
    targets[1, 3] = np.nan
    targets[2] = np.nan
    return viewer.prepare_clip(spine_model, q, targets, 50.0)


@pytest.fixture(scope="module")
def ellipsoids(clip) -> Ellipsoids:
    """Of each frame's own size; the first marker's reach too far, the second's are not known."""
    covariance = np.zeros((*clip.markers.shape, 3))
    covariance[:] = np.diag([1e-4, 4e-4, 9e-4]) * np.arange(1, clip.n_frames + 1)[:, None, None, None]
    covariance[:, 0] = 4 * np.eye(3)
    covariance[:, 1] = np.nan
    return ellipsoids_of(covariance, 0.9)


@pytest.fixture
def converted(spine_osim, paper_markers, tmp_path):
    """The converted spine model with two tetrahedra as bones of the torso and one of the head."""
    source = converted_path(spine_osim, paper_markers, ())
    shutil.copy(source, tmp_path / source.name)
    (tmp_path / "meshes").mkdir()
    write_stl(tmp_path / "meshes" / "bone.stl")
    turned = (np.sqrt(0.5), 0.0, 0.0, np.sqrt(0.5))  # a quarter about z: x becomes y
    geometry = (
        GeometryDescription(
            "torso", "bone.stl", (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.9, 0.8, 0.7, 1.0)
        ),
        GeometryDescription(
            "torso", "bone.stl", (0.0, 0.0, 5.0), turned, (2.0, 1.0, 1.0), (0.9, 0.8, 0.7, 1.0)
        ),
        GeometryDescription(
            "head", "bone.stl", (0.0, 0.0, 0.0), turned, (1.0, 1.0, 1.0), (0.1, 0.2, 0.3, 1.0)
        ),
    )
    description = dataclasses.replace(read_sidecar(source.with_suffix(".json")), geometry=geometry)
    write_sidecar(tmp_path / f"{source.stem}.json", description)
    return tmp_path / source.name


def test_a_clip_holds_the_poses_of_forward_kinematics(spine_model, q, poses, clip):
    np.testing.assert_allclose(clip.markers, poses.markers, atol=FLOAT32_M)
    np.testing.assert_allclose(clip.positions, poses.body_positions, atol=FLOAT32_M)
    default = forward_kinematics(spine_model, spine_model.default_q)
    np.testing.assert_allclose(clip.rest.markers, default.markers, atol=FLOAT32_M)
    assert (clip.n_frames, clip.rate_hz, clip.stride) == (7, 50.0, 1)


@pytest.mark.parametrize(
    ("max_frames", "stride", "n_frames"), [(None, 1, 7), (7, 1, 7), (6, 2, 4), (1, 7, 1)]
)
def test_a_clip_keeps_every_nth_frame(spine_model, q, poses, max_frames, stride, n_frames):
    clip = viewer.prepare_clip(spine_model, q, poses.markers, 50.0, max_frames)
    assert (clip.n_frames, clip.stride, clip.rate_hz) == (n_frames, stride, 50.0 / stride)
    np.testing.assert_allclose(clip.markers, poses.markers[::stride], atol=FLOAT32_M)
    np.testing.assert_allclose(clip.targets, poses.markers[::stride], atol=FLOAT32_M)


def test_a_clip_follows_scale_factors_and_offsets(spine_model, q):
    factors = np.full((len(spine_model.body_names), 1), 1.1)
    offsets = np.full((spine_model.n_markers, 3), 0.01)
    clip = viewer.prepare_clip(spine_model, q, None, 50.0, scale_factors=factors, marker_offsets=offsets)
    expected = jax.jit(forward_kinematics)(
        spine_model, q, scale_factors=factors, marker_offsets=offsets
    ).markers
    np.testing.assert_allclose(clip.markers, expected, atol=FLOAT32_M)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": np.zeros((3, 2))}, r"q has shape \(3, 2\); valid is \[T, 40\]"),
        ({"q": np.zeros((0, 40))}, r"q has shape \(0, 40\)"),
        ({"q": np.full((7, 40), np.nan)}, "all finite"),
        ({"targets": np.zeros((7, 5, 3))}, r"targets has shape \(7, 5, 3\); valid is \(7, 33, 3\)"),
        (
            {"ellipsoids": ellipsoids_of(np.zeros((7, 5, 3, 3)), 0.9)},
            r"half axes of shape \(7, 5, 3\); valid is \(7, 33, 3\)",
        ),
        ({"rate_hz": 0.0}, "rate_hz is 0.0"),
        ({"max_frames": 0}, "max_frames is 0; valid is at least 1"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(spine_model, q, change, message):
    arguments = {"q": q, "targets": None, "rate_hz": 50.0, "max_frames": None} | change
    with pytest.raises(ShapeError, match=message):
        viewer.prepare_clip(spine_model, **arguments)


def test_missing_targets_are_left_out(clip):
    points, lines = viewer._targets_at(clip, 1)
    assert len(points) == len(lines) == clip.markers.shape[1] - 1
    np.testing.assert_allclose(lines[:, 1] - lines[:, 0], 0.01, atol=FLOAT32_M)
    assert len(viewer._targets_at(clip, 2)[0]) == 0


def test_capsules_join_bodies_to_their_children(spine_model, clip):
    meshes = {mesh.body: mesh for mesh in capsule_figure(spine_model, clip.rest)}
    assert {"femur_r", "lumbar3", "torso", "head", "toes_l"} <= set(meshes)
    assert all(volume(mesh) > 0 for mesh in meshes.values())  # outward, closed
    index = spine_model.body_names.index
    thigh = np.linalg.norm(
        clip.rest.body_positions[index("tibia_r")] - clip.rest.body_positions[index("femur_r")]
    )
    reach = np.linalg.norm(meshes["femur_r"].vertices, axis=1).max()
    assert reach == pytest.approx(thigh, abs=0.05)


def test_stl_reads_with_each_vertex_once(tmp_path):
    write_stl(tmp_path / "bone.stl")
    vertices, faces = read_stl(tmp_path / "bone.stl")
    assert len(vertices) == 4
    np.testing.assert_array_equal(vertices[faces], TETRAHEDRON[FACES])


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: raw[:40], lambda _: b"solid ascii\n"])
def test_damaged_stl_is_refused(tmp_path, damage):
    write_stl(tmp_path / "bone.stl")
    (tmp_path / "bone.stl").write_bytes(damage((tmp_path / "bone.stl").read_bytes()))
    with pytest.raises(FileFormatError, match=r"bone.stl is not a mesh; valid is a binary STL file"):
        read_stl(tmp_path / "bone.stl")


@pytest.mark.parametrize("given", ["model", "folder", "meshes"])
def test_bones_are_placed_in_their_bodies(converted, given):
    path = {"model": converted, "folder": converted.parent, "meshes": converted.parent / "meshes"}[given]
    torso, head = read_bones(path)
    assert (torso.body, head.body) == ("torso", "head")
    assert head.color == (0.1, 0.2, 0.3)
    np.testing.assert_allclose(head.vertices.max(axis=0), [0, 1, 1], atol=FLOAT32_M)
    assert len(torso.vertices) == 8
    np.testing.assert_allclose(torso.vertices.max(axis=0), [1, 2, 6], atol=FLOAT32_M)
    assert volume(torso) == pytest.approx(0.5)


def test_bones_scale_with_their_bodies(spine_model, converted, clip):
    factors = np.ones((len(spine_model.body_names), 3))
    factors[spine_model.body_names.index("head")] = 1, 2, 3
    plain = viewer._bones(spine_model, converted, clip, None)
    scaled = viewer._bones(spine_model, converted, clip, factors)
    np.testing.assert_allclose(scaled[0].vertices, plain[0].vertices)
    np.testing.assert_allclose(scaled[1].vertices, plain[1].vertices * [1, 2, 3])


def test_a_missing_mesh_is_named(converted):
    (converted.parent / "meshes" / "bone.stl").unlink()
    with pytest.raises(FileFormatError, match=r"bone\.stl"):
        read_bones(converted)


@pytest.mark.parametrize("with_targets", [True, False])
def test_the_page_says_what_it_shows(spine_model, q, poses, converted, tmp_path, with_targets, capsys):
    model = dataclasses.replace(spine_model, name="<b>A & B")
    targets = poses.markers if with_targets else None
    page = viewer.write_html(
        model, q, tmp_path / "page.html", targets, rate_hz=50.0, max_frames=3, meshes=converted
    )
    text = page.path.read_text(encoding="utf-8")
    assert (page.n_frames, page.n_frames_given, page.stride) == (3, 7, 3)
    assert page.rate_hz == pytest.approx(50 / 3)
    assert page.size_bytes == page.path.stat().st_size < 2_000_000
    assert "7 frames at 50 Hz, every 3rd shown" in text
    assert "<title>&lt;b&gt;A &amp; B: 7 frames</title>" in text
    assert "<b>A & B" not in text
    assert ("from marker to target" in text) == with_targets
    assert capsys.readouterr().out == ""


def test_a_page_with_ellipsoids_has_a_box_to_hide_them(spine_model, q, ellipsoids, tmp_path):
    plain = viewer.write_html(spine_model, q, tmp_path / "plain.html", rate_hz=50.0)
    page = viewer.write_html(spine_model, q, tmp_path / "page.html", rate_hz=50.0, ellipsoids=ellipsoids)
    text, without = (
        p.path.read_text(encoding="utf-8").rpartition("</body>")[0][-4000:] for p in (page, plain)
    )
    assert "holds a marker with 90%" in text
    assert "likewise, but larger: cut at 0.5 m" in text
    assert "show ellipsoids" in text
    assert "show ellipsoids" not in without
    assert "holds a marker" not in without
    assert "cut at" not in viewer._legend(few(spine_model, q, ellipsoids))
    assert "src=" not in text + without
    assert page.size_bytes - plain.size_bytes < 60_000


def few(model, q, ellipsoids):
    """A clip without ellipsoids that are cut."""
    none_cut = dataclasses.replace(ellipsoids, capped=np.zeros_like(ellipsoids.capped))
    return viewer.prepare_clip(model, q, None, 50.0, ellipsoids=none_cut)


def test_ellipsoids_follow_the_motion(spine_model, q, ellipsoids):
    clip = viewer.prepare_clip(spine_model, q, None, 50.0, 4, ellipsoids=ellipsoids)
    assert clip.stride == 2
    with viewer._server("127.0.0.1", 0) as server:
        scene = viewer.Scene(server, spine_model, clip, capsule_figure(spine_model, clip.rest))
        for frame in (0, 3):
            scene.show(frame)
            shown = scene.ellipsoids
            np.testing.assert_array_equal(shown.batched_positions, clip.markers[frame])
            wanted = ellipsoids.half_axes[2 * frame]
            np.testing.assert_allclose(shown.batched_scales, wanted, rtol=FLOAT16)
            np.testing.assert_allclose(shown.batched_wxyzs, ellipsoids.quaternions[2 * frame], atol=FLOAT16)
            np.testing.assert_allclose(shown.batched_scales[0], LONGEST_M, rtol=FLOAT16)
            np.testing.assert_array_equal(shown.batched_scales[1], 0)
            np.testing.assert_array_equal(
                shown.batched_colors[:2], [viewer.CAPPED_COLOR, viewer.ELLIPSOID_COLOR]
            )
            # Deviations along x, y and z are 1, 2 and 3 centimetres in the first frame.
            expected = 2.5003 * np.sqrt(2 * frame + 1) * np.array([0.01, 0.02, 0.03])
            np.testing.assert_allclose(shown.batched_scales[2], expected, rtol=2 * FLOAT16)


@pytest.fixture
def player(spine_model, clip, ellipsoids):
    clip = dataclasses.replace(clip, ellipsoids=ellipsoids)
    with viewer._server("127.0.0.1", 0) as server:
        bones = capsule_figure(spine_model, clip.rest)
        scene = viewer.Scene(server, spine_model, clip, bones)
        yield viewer.Player(server, scene, clip), scene


def test_the_player_plays_loops_and_stops(player, clip):
    controls, scene = player
    controls.advance(2.5 / 50)
    assert controls.frame.value == 2
    np.testing.assert_array_equal(scene.markers.points, clip.markers[2])
    assert len(scene.targets.points) == 0  # all targets are missing there
    controls.speed.value = "2"
    controls.advance(1.0 / 50)
    assert controls.frame.value == 4
    controls.advance(2.0 / 50)
    assert controls.frame.value == 1
    controls.playing.value = False
    controls.advance(1.0)
    assert controls.frame.value == 1
    controls.frame.value = 5
    controls.advance(1.0)
    assert controls.frame.value == 5
    np.testing.assert_array_equal(scene.markers.points, clip.markers[5])
    controls.playing.value = True
    controls.advance(0.25 / 50)
    assert controls.frame.value == 5


def test_the_toggles_hide_what_they_name(player):
    controls, scene = player
    nodes = (scene.bones, scene.markers, scene.targets, scene.ellipsoids)
    for toggle, node in zip(controls.toggles, nodes, strict=True):
        toggle.value = False
        assert not node.visible
        toggle.value = True
        assert node.visible


def test_serving_ends_with_an_interrupt(spine_model, q, monkeypatch, capsys):
    ticks = iter([None, None])

    def sleep(_):
        if next(ticks, "end") == "end":
            raise KeyboardInterrupt

    monkeypatch.setattr(viewer.time, "sleep", sleep)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    viewer.serve(spine_model, q, rate_hz=50.0, port=port)
    assert f"Showing 7 frames at http://127.0.0.1:{port}" in capsys.readouterr().out


def test_a_port_in_use_is_one_sentence(spine_model, q):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SimspineError, match=rf"Can't listen on 127.0.0.1:{port} \(.*in use.*\); choose"):
            viewer.serve(spine_model, q, rate_hz=50.0, port=port)
    with pytest.raises(SimspineError, match="The port is 70000; valid is 0 to 65535"):
        viewer.serve(spine_model, q, rate_hz=50.0, port=70000)


def test_without_viser_the_extra_is_named(spine_model, q, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'simspine-jax\[viewer\]'"):
        viewer.write_html(spine_model, q, tmp_path / "page.html", rate_hz=50.0)
