"""A motion in the browser: as one self-contained HTML file, or live.

Both show the same scene: bones (or capsules), the model's markers, the targets that inverse kinematics
followed, lines between a marker and its target, and ellipsoids that hold where a marker may be. All poses
come from one batched forward-kinematics call. Nothing is fetched from a network.
"""

from __future__ import annotations

import contextlib
import html
import io
import math
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.transform import Rotation

from simspine_jax.arrays import Array, Float
from simspine_jax.errors import MissingDependencyError, ShapeError, SimspineError
from simspine_jax.io.files import atomic_write
from simspine_jax.kinematics.forward import Poses, forward_kinematics
from simspine_jax.kinematics.model import SpineModel
from simspine_jax.viz.bones import BodyMesh, capsule_figure, read_bones
from simspine_jax.viz.ellipsoids import LONGEST_M, Ellipsoids, unit_sphere

if TYPE_CHECKING:
    import viser

# Okabe and Ito's colours, which stay apart for colour-blind people.
MARKER_COLOR = (0, 114, 178)
TARGET_COLOR = (213, 94, 0)
CAPPED_COLOR = (230, 159, 0)
RESIDUAL_COLOR = (70, 70, 70)
# Their purple is nearly white where it is lit and seen through.
ELLIPSOID_COLOR = (150, 40, 170)
ELLIPSOID_OPACITY = 0.4
MARKER_SIZE_M = 0.016
RESIDUAL_THICKNESS_M = 0.003

FIELD_OF_VIEW = math.radians(35)
# From the person's right, a little from behind and above: there the spine is seen best.
_CAMERA_DIRECTION = (-0.55, 0.25, 1.0)
# Head and hands reach beyond the last body origins and markers.
_REACH_M = 0.12
_GRID_CELL_M = 0.25
_TICK_S = 1 / 60

_ELLIPSOIDS = "/ellipsoids"
# Viser's client has no controls in a page. It tells its state to who tests it, which a box can change as its
# own tree of the scene does, so that a loop of the motion leaves it; without that state there is no box.
_ELLIPSOIDS_BOX = f"""<label style="display:none;pointer-events:auto">
<input type="checkbox" checked autocomplete="off" style="margin:0;vertical-align:middle">
show ellipsoids</label>
<script>
{{
  const label = document.currentScript.previousElementSibling, box = label.firstElementChild;
  const node = () => window.__viserSceneTree && window.__viserSceneTree.getState()["{_ELLIPSOIDS}"];
  const wait = setInterval(() => {{
    if (!node()) return;
    clearInterval(wait);
    label.style.display = "block";
  }}, 100);
  box.addEventListener("change", () => {{
    node().overrideVisibility = box.checked ? undefined : false;
    window.__viserMutable.requestRender();
  }});
}}
</script>"""

_poses = jax.jit(forward_kinematics)
_SPEEDS = ("0.25", "0.5", "1", "2", "4")


@dataclass(frozen=True, eq=False)
class Clip:
    """What moves in the scene, frame by frame, in ground (Y up), metres; float32.

    Attributes:
        markers: the model's markers [T, K, 3].
        targets: what they should match [T, K, 3], NaN where missing; None to show none.
        positions: body origins [T, B, 3].
        quaternions: ``R_ground_body`` as w, x, y, z [T, B, 4].
        rest: the default pose.
        rate_hz: frames per second of these frames.
        stride: these are every ``stride``-th frame of the motion.
        ellipsoids: that hold where the markers may be; None to show none.
    """

    markers: np.ndarray
    targets: np.ndarray | None
    positions: np.ndarray
    quaternions: np.ndarray
    rest: Poses
    rate_hz: float
    stride: int = 1
    ellipsoids: Ellipsoids | None = None

    @property
    def n_frames(self) -> int:
        """Number of frames T."""
        return len(self.markers)


@dataclass(frozen=True)
class WrittenPage:
    """A page that was written: of ``n_frames_given`` frames it plays every ``stride``-th."""

    path: Path
    n_frames: int
    n_frames_given: int
    stride: int
    rate_hz: float
    size_bytes: int


def write_html(
    model: SpineModel,
    q: Float[Array, "T Q"],
    path: str | os.PathLike[str],
    targets: Float[Array, "T K 3"] | None = None,
    *,
    rate_hz: float,
    meshes: str | Path | None = None,
    max_frames: int = 300,
    scale_factors: Float[Array, "B _"] | None = None,
    marker_offsets: Float[Array, "K 3"] | None = None,
    ellipsoids: Ellipsoids | None = None,
) -> WrittenPage:
    """Writes one HTML file that plays the motion in a loop, without a server or a network.

    Args:
        q: free coordinates, radians and metres.
        path: of the file to write.
        targets: positions that the markers should match, metres, NaN where missing.
        rate_hz: frames per second of ``q``.
        meshes: the converted model whose bones to show, as `read_bones` takes it; None shows capsules.
        max_frames: every n-th frame is kept so that there are no more; the page says so.
        scale_factors: as `forward_kinematics` takes them; bones are scaled likewise.
        marker_offsets: as `forward_kinematics` takes them.
        ellipsoids: that hold where each of the model's markers may be, frame by frame of ``q``; the page has
            a box to hide them by.

    Raises:
        ShapeError: an array doesn't fit the model, or a rate or number of frames is not positive.
        FileFormatError: the meshes can't be read.
        MissingDependencyError: viser is not installed.
        SimspineError: the file can't be written.
    """
    clip = prepare_clip(model, q, targets, rate_hz, max_frames, scale_factors, marker_offsets, ellipsoids)
    bones = _bones(model, meshes, clip, scale_factors)
    with _server("127.0.0.1", 0) as server:
        scene = Scene(server, model, clip, bones)
        recording = server.get_scene_serializer()
        for frame in range(clip.n_frames):
            scene.show(frame)
            recording.insert_sleep(1 / clip.rate_hz)
        page = recording.as_html()
    n_given = len(np.asarray(q))
    body, end, rest = page.rpartition("</body>")
    page = body + _overlay(model, clip, n_given) + end + rest
    title = html.escape(f"{model.name}: {n_given} frames")
    page = page.replace("<title>Viser</title>", f"<title>{title}</title>", 1)
    with atomic_write(path) as file:
        file.write(page)
    size = Path(path).stat().st_size
    return WrittenPage(Path(path), clip.n_frames, n_given, clip.stride, clip.rate_hz, size)


def serve(
    model: SpineModel,
    q: Float[Array, "T Q"],
    targets: Float[Array, "T K 3"] | None = None,
    *,
    rate_hz: float,
    meshes: str | Path | None = None,
    scale_factors: Float[Array, "B _"] | None = None,
    marker_offsets: Float[Array, "K 3"] | None = None,
    ellipsoids: Ellipsoids | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
) -> None:
    """Shows the motion at ``http://host:port`` until it is interrupted (Ctrl-C); arguments as `write_html`.

    Raises:
        ShapeError, FileFormatError, MissingDependencyError: as `write_html`.
        SimspineError: the port is in use or the address can't be listened on.
    """
    clip = prepare_clip(model, q, targets, rate_hz, None, scale_factors, marker_offsets, ellipsoids)
    bones = _bones(model, meshes, clip, scale_factors)
    _check_port(host, port)
    with _server(host, port) as server:
        player = Player(server, Scene(server, model, clip, bones), clip)
        print(
            f"Showing {clip.n_frames} frames at http://{host}:{server.get_port()} (Ctrl-C ends)", flush=True
        )
        before = time.monotonic()
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(_TICK_S)
                now = time.monotonic()
                player.advance(now - before)
                before = now


def prepare_clip(
    model: SpineModel,
    q: Float[Array, "T Q"],
    targets: Float[Array, "T K 3"] | None,
    rate_hz: float,
    max_frames: int | None = None,
    scale_factors: Float[Array, "B _"] | None = None,
    marker_offsets: Float[Array, "K 3"] | None = None,
    ellipsoids: Ellipsoids | None = None,
) -> Clip:
    """Every n-th frame, so that there are at most ``max_frames``, and its poses.

    Raises:
        ShapeError: an array doesn't fit the model, or a rate or number of frames is not positive.
    """
    free = np.asarray(q)
    if free.ndim != 2 or len(free) == 0 or free.shape[1] != model.n_free or not np.isfinite(free).all():
        raise ShapeError(f"q has shape {free.shape}; valid is [T, {model.n_free}] with T above 0, all finite")
    wanted = (len(free), model.n_markers, 3)
    if targets is not None and np.shape(targets) != wanted:
        raise ShapeError(
            f"targets has shape {np.shape(targets)}; valid is {wanted}, as q and the model's markers"
        )
    if ellipsoids is not None and ellipsoids.half_axes.shape != wanted:
        raise ShapeError(
            f"ellipsoids have half axes of shape {ellipsoids.half_axes.shape}; valid is {wanted}, as q and "
            "the model's markers"
        )
    if not (math.isfinite(rate_hz) and rate_hz > 0):
        raise ShapeError(f"rate_hz is {rate_hz}; valid is a positive number of frames per second")
    if max_frames is not None and max_frames < 1:
        raise ShapeError(f"max_frames is {max_frames}; valid is at least 1")
    stride = 1 if max_frames is None else math.ceil(len(free) / max_frames)
    # The default pose rides along as the first, for the capsules: so there is one call and one compilation.
    batch = np.concatenate([np.asarray(model.default_q)[None], free[::stride]])
    poses = _poses(model, jnp.asarray(batch), scale_factors=scale_factors, marker_offsets=marker_offsets)
    rotations = np.asarray(poses.body_rotations, float)[1:]
    quaternions = Rotation.from_matrix(rotations.reshape(-1, 3, 3)).as_quat(scalar_first=True)
    return Clip(
        markers=np.asarray(poses.markers[1:], np.float32),
        targets=None if targets is None else np.asarray(targets, np.float32)[::stride],
        positions=np.asarray(poses.body_positions[1:], np.float32),
        quaternions=quaternions.reshape(*rotations.shape[:2], 4).astype(np.float32),
        rest=jax.tree.map(lambda x: np.asarray(x[0]), poses),
        rate_hz=rate_hz / stride,
        stride=stride,
        ellipsoids=None if ellipsoids is None else ellipsoids.every(stride),
    )


class Scene:
    """A clip in a viser server: ``/bones``, ``/markers``, ``/targets``, ``/ellipsoids`` and ``/ground``."""

    def __init__(self, server: viser.ViserServer, model: SpineModel, clip: Clip, bones: Sequence[BodyMesh]):
        self._clip = clip
        scene = server.scene
        scene.set_up_direction("+y")
        scene.world_axes.visible = False
        _frame_camera(server, model, clip)
        self.bones = scene.add_frame("/bones", show_axes=False)
        self._bodies = [scene.add_frame(f"/bones/{name}", show_axes=False) for name in model.body_names]
        for i, bone in enumerate(bones):
            name = f"/bones/{bone.body}/{i}"
            scene.add_mesh_simple(name, bone.vertices, bone.faces, color=bone.color, side="double")
        self.markers = _add_points(scene, "/markers", clip.markers[0], MARKER_COLOR)
        self.targets = None
        if clip.targets is not None:
            # The lines hang below the targets, so that both are hidden together.
            points, lines = _targets_at(clip, 0)
            self.targets = _add_points(scene, "/targets", points, TARGET_COLOR)
            self._residuals = scene.add_line_segments(
                "/targets/residuals", lines, RESIDUAL_COLOR, thickness=RESIDUAL_THICKNESS_M
            )
        self.ellipsoids = None if clip.ellipsoids is None else _add_ellipsoids(scene, clip)
        self.show(0)

    def show(self, frame: int) -> None:
        """Moves everything to a frame of the clip."""
        clip = self._clip
        self.markers.points = clip.markers[frame]
        for body, position, quaternion in zip(
            self._bodies, clip.positions[frame], clip.quaternions[frame], strict=True
        ):
            body.position, body.wxyz = position, quaternion
        if self.targets is not None:
            self.targets.points, self._residuals.points = _targets_at(clip, frame)
        if self.ellipsoids is not None:
            shells, (wxyzs, scales, colors) = self.ellipsoids, _ellipsoids_at(clip, frame)
            shells.batched_positions, shells.batched_wxyzs = clip.markers[frame], wxyzs
            shells.batched_scales, shells.batched_colors = scales, colors


class Player:
    """The controls of a live scene; ``advance`` moves them on by the time that has passed."""

    def __init__(self, server: viser.ViserServer, scene: Scene, clip: Clip):
        self._clip, self._position = clip, 0.0
        gui = server.gui
        legend = _legend(clip)
        gui.add_html(f'<div style="padding:0 .7em .5em;font-size:13px">{legend}</div>')
        self.playing = gui.add_checkbox("Play", True)
        self.speed = gui.add_dropdown("Speed", _SPEEDS, initial_value="1")
        self.frame = gui.add_slider("Frame", min=0, max=max(clip.n_frames - 1, 1), step=1, initial_value=0)
        self.toggles = []
        for label, node in (
            ("Bones", scene.bones), ("Markers", scene.markers), ("Targets", scene.targets),
            ("Ellipsoids", scene.ellipsoids),
        ):  # fmt: skip
            if node is not None:
                self.toggles.append(gui.add_checkbox(label, True))
                self.toggles[-1].on_update(
                    lambda event, node=node: setattr(node, "visible", event.target.value)
                )
        self.frame.on_update(lambda event: scene.show(min(event.target.value, clip.n_frames - 1)))

    def advance(self, elapsed_s: float) -> None:
        """Moves the frame on if playing; else notes where the slider was put."""
        if not self.playing.value or self.frame.value != int(self._position):
            self._position = float(self.frame.value)
        if self.playing.value:
            step = elapsed_s * self._clip.rate_hz * float(self.speed.value)
            self._position = (self._position + step) % self._clip.n_frames
            if self.frame.value != int(self._position):
                self.frame.value = int(self._position)


def _add_points(scene: viser.SceneApi, name: str, points: np.ndarray, color: tuple[int, int, int]):
    return scene.add_point_cloud(
        name, points, color, point_size=MARKER_SIZE_M, point_shape="circle", precision="float32"
    )


def _add_ellipsoids(scene: viser.SceneApi, clip: Clip) -> viser.BatchedMeshHandle:
    """A sphere for each marker, which frames turn, stretch and colour."""
    vertices, faces = unit_sphere()
    wxyzs, scales, colors = _ellipsoids_at(clip, 0)
    return scene.add_batched_meshes_simple(
        _ELLIPSOIDS, vertices, faces, wxyzs, clip.markers[0],
        batched_scales=scales, batched_colors=colors, opacity=ELLIPSOID_OPACITY, lod="off",
        cast_shadow=False, receive_shadow=False,
    )  # fmt: skip


def _ellipsoids_at(clip: Clip, frame: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rotations [K, 4], half axes [K, 3] and colours [K, 3] of ellipsoids.

    Numbers are as exact as 16 bits make them, a thousandth, which halves what they take in a page.
    """
    assert clip.ellipsoids is not None
    shells = clip.ellipsoids
    wxyzs, scales = (
        x[frame].astype(np.float16).astype(np.float32) for x in (shells.quaternions, shells.half_axes)
    )
    colors = np.where(shells.capped[frame, :, None], CAPPED_COLOR, ELLIPSOID_COLOR)
    return wxyzs, scales, colors.astype(np.uint8)


def _targets_at(clip: Clip, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """Targets that are there [N, 3], and lines from the markers to them [N, 2, 3]."""
    assert clip.targets is not None
    seen = np.isfinite(clip.targets[frame]).all(axis=-1)
    points = clip.targets[frame][seen]
    return points, np.stack([clip.markers[frame][seen], points], axis=1)


def _bones(
    model: SpineModel, meshes: str | Path | None, clip: Clip, scale_factors: Float[Array, "B _"] | None
) -> tuple[BodyMesh, ...]:
    """Meshes, scaled with their bodies, or capsules between the joints of the scaled model."""
    bones = read_bones(meshes) if meshes is not None else ()
    if not bones:
        return capsule_figure(model, clip.rest)
    if unknown := sorted({bone.body for bone in bones} - set(model.body_names)):
        raise ShapeError(
            f"{meshes} has bones of '{unknown[0]}', which is not a body of the model {model.name}"
        )
    if scale_factors is None:
        return bones
    factors = dict(zip(model.body_names, np.asarray(scale_factors, float), strict=True))
    return tuple(replace(bone, vertices=bone.vertices * factors[bone.body]) for bone in bones)


def _frame_camera(server: viser.ViserServer, model: SpineModel, clip: Clip) -> None:
    """Puts the camera where the whole motion is in view, and a grid on the ground below it."""
    points = np.concatenate([clip.positions, clip.markers], axis=1).reshape(-1, 3)
    low, high = points.min(axis=0) - _REACH_M, points.max(axis=0) + _REACH_M
    centre, size = (low + high) / 2, high - low
    depth = float(np.hypot(size[0], size[2]))
    direction = Rotation.from_rotvec([0, _heading(clip), 0]).apply(_CAMERA_DIRECTION)
    distance = max(depth, float(size[1])) / 2 / math.tan(FIELD_OF_VIEW / 2) + depth / 4
    camera = server.initial_camera
    camera.fov, camera.up = FIELD_OF_VIEW, (0.0, 1.0, 0.0)
    camera.look_at = centre
    camera.position = centre + distance * direction / np.linalg.norm(direction)
    side = 2 * math.ceil(depth / 2 + 0.5)
    server.scene.add_grid(
        "/ground", side, side, plane="xz", position=(centre[0], 0.0, centre[2]), cell_size=_GRID_CELL_M
    )


def _heading(clip: Clip) -> float:
    """Turn about the vertical of the first body, the pelvis, in the first frame; it faces x at 0."""
    x, _, z = Rotation.from_quat(clip.quaternions[0, 0], scalar_first=True).apply([1.0, 0.0, 0.0])
    return math.atan2(-z, x)


def _legend(clip: Clip) -> str:
    rows: list[tuple[tuple[int, int, int], str]] = [(MARKER_COLOR, "markers of the model")]
    if clip.targets is not None:
        rows += [(TARGET_COLOR, "targets"), (RESIDUAL_COLOR, "from marker to target")]
    if clip.ellipsoids is not None:
        rows.append((ELLIPSOID_COLOR, f"holds a marker with {clip.ellipsoids.share:.0%}"))
        if clip.ellipsoids.capped.any():
            rows.append((CAPPED_COLOR, f"likewise, but larger: cut at {LONGEST_M:g} m"))
    dot = "display:inline-block;width:.8em;height:.8em;border-radius:50%;background:rgb"
    return "<br>".join(f'<span style="{dot}{color}"></span> {text}' for color, text in rows)


def _overlay(model: SpineModel, clip: Clip, n_given: int) -> str:
    """Legend and origin of what is shown, in a corner of the page."""
    every = "all shown" if clip.stride == 1 else f"every {_ordinal(clip.stride)} shown"
    about = f"{html.escape(model.name)}<br>{n_given} frames at {clip.rate_hz * clip.stride:g} Hz, {every}"
    style = (
        "position:fixed;top:12px;right:12px;z-index:10;pointer-events:none;padding:8px 12px;"
        "border-radius:6px;background:rgba(255,255,255,.85);color:#222;font:12px/1.5 system-ui,sans-serif"
    )
    box = "" if clip.ellipsoids is None else _ELLIPSOIDS_BOX
    return f'<div style="{style}">{about}<br>{_legend(clip)}{box}</div>'


def _ordinal(n: int) -> str:
    teen = 10 <= n % 100 <= 20
    return f"{n}{'th' if teen else {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th')}"


@contextlib.contextmanager
def _server(host: str, port: int) -> Iterator[viser.ViserServer]:
    """A viser server; port 0 takes a free one."""
    try:
        import viser
    except ImportError:
        raise MissingDependencyError("viser", "viewer", "The viewer") from None
    # It announces on standard output that it starts and stops, whether verbose or not.
    with contextlib.redirect_stdout(io.StringIO()):
        server = viser.ViserServer(host=host, port=port, verbose=False)
    try:
        yield server
    finally:
        with contextlib.redirect_stdout(io.StringIO()):
            server.stop()


def _check_port(host: str, port: int) -> None:
    """Viser would take the next free port without a word, or try for ever on a wrong host."""
    try:
        with socket.socket() as probe:
            # As the server itself does: a port that was left a moment ago may be taken again.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OverflowError:
        raise SimspineError(f"The port is {port}; valid is 0 to 65535") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SimspineError(
            f"Can't listen on {host}:{port} ({reason}); choose another port or host"
        ) from None
