"""A stage that pictures are taken on: MuJoCo's renderer, without a window, over one compiled model a figure.

Nothing is simulated. A picture sets where bodies are, what is shown and in which colours, and the camera, all
in the compiled model's arrays; the ground frame (Y up) is MuJoCo's world.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from simspine_jax.capture.appearance import N_LIGHTS, PATTERN_PX, Box, Color, Outfit, Pattern, Room
from simspine_jax.capture.figure import Figure, Surface
from simspine_jax.errors import ShapeError, SimspineError

MAX_PX = 512
"""Greatest width and height of a picture."""

N_BOXES = 12
"""Boxes on the stage: furniture and a chair."""

NOTHING = -1
"""Label of a pixel that shows no part of the figure."""

PACKAGES = {"egl": "libegl1 libegl-mesa0 libgl1-mesa-dri", "osmesa": "libosmesa6"}
"""Debian packages of the libraries that draw without a window."""

_LIBRARIES = {"egl": "libEGL.so.1", "osmesa": "libOSMesa.so.8"}
_NEAR_M, _FAR_M = 0.05, 60.0
_OUTDOORS_M, _SLAB_M = 25.0, 0.05
_SHOWN, _HIDDEN = 0, 5
_PATTERN_PER_M = 4.0
# Many samples a pixel take twice the time; the lens' blur smooths edges nearly as well.
_SHADOW_PX, _SAMPLES = 1024, 0
_CUBE_PX = 64
_FLOOR, _ROOF, _WALLS = 0, 1, (2, 3, 4, 5)

Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Shot:
    """What the renderer saw.

    Attributes:
        pixels: uint8 ``[H W 3]``, RGB.
        depth: ``[H W]`` along the optical axis to the first surface, m.
        labels: int ``[H W]``: the surface of the figure that is seen, or `NOTHING`.
    """

    pixels: NDArray[np.uint8]
    depth: NDArray[np.float32]
    labels: NDArray[np.int32]


def gl_backend() -> str:
    """``egl`` or ``osmesa``: what ``MUJOCO_GL`` names, or else what this machine has.

    Raises:
        SimspineError: it has neither library, or TensorFlow is loaded, beside which Mesa crashes.
    """
    if "tensorflow" in sys.modules:
        raise SimspineError(
            "Pictures can't be drawn in a process that has loaded TensorFlow, which would crash; valid is a "
            "process of its own, as 'simspine dataset build' has it"
        )
    asked = os.environ.get("MUJOCO_GL", "").strip().lower()
    for name in (asked,) if asked in _LIBRARIES else _LIBRARIES:
        try:
            ctypes.CDLL(_LIBRARIES[name])
        except OSError:
            continue
        return name
    raise SimspineError(
        f"Rendering needs {' or '.join(_LIBRARIES.values())}, which this machine lacks; on Debian install "
        f"{' or '.join(PACKAGES.values())}"
    )


def _gl_context(size: int) -> Any:
    """An OpenGL context without a window.

    Raises:
        SimspineError: there is no library for it, or it finds no device.
    """
    backend = gl_backend()
    try:
        if backend == "egl":
            from mujoco.egl import GLContext
        else:
            from mujoco.osmesa import GLContext
        return GLContext(size, size)
    except (ImportError, RuntimeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SimspineError(
            f"Rendering by {backend} failed ({reason}); on Debian install "
            f"{' or '.join(PACKAGES.values())} and name one in MUJOCO_GL"
        ) from None


class Stage:
    """A figure on its stage; a context manager.

    Raises:
        SimspineError: nothing can be drawn on this machine.
    """

    def __init__(self, figure: Figure, patterns: NDArray[np.uint8]):
        import mujoco

        self.figure = figure
        self.model = _compile(figure, patterns)
        self.data = mujoco.MjData(self.model)
        mujoco.mj_forward(self.model, self.data)
        self.data.xpos[1:], self._n_patterns = figure.positions, len(patterns)
        self._gl = _gl_context(MAX_PX)
        self._gl.make_current()
        self._context = mujoco.MjrContext(self.model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        self._scene = mujoco.MjvScene(self.model, maxgeom=200)
        for flag in ("mjRND_HAZE", "mjRND_FOG", "mjRND_REFLECTION"):
            self._scene.flags[getattr(mujoco.mjtRndFlag, flag).value] = 0
        self._option, self._camera = mujoco.MjvOption(), mujoco.MjvCamera()

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the renderer's memory back."""
        if self._context is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._context = None

    def pose(self, positions: Numbers, rotations: Numbers) -> None:
        """Puts the bodies in place.

        Args:
            positions: ``[B 3]`` in ground, m.
            rotations: ``[B 3 3]``.
        """
        self.data.xpos[1:] = positions
        self.data.xquat[1:] = Rotation.from_matrix(rotations).as_quat(scalar_first=True)
        self.data.xmat[1:] = rotations.reshape(-1, 9)

    def dress(self, outfit: Outfit) -> None:
        """Shows what the outfit has, in its colours."""
        colors = {
            "skin": Pattern(0, outfit.skin), "features": Pattern(0, outfit.features),
            "hair": Pattern(0, outfit.hair), "shirt": outfit.shirt, "trousers": outfit.trousers,
            "shoes": Pattern(0, outfit.shoes),
        }  # fmt: skip
        for i, surface in enumerate(self.figure.surfaces):
            shown = "/" not in surface.name or surface.name in outfit.parts
            self.model.skin_group[i] = _SHOWN if shown else _HIDDEN
            pattern, color = colors[surface.cover]
            self.model.skin_matid[i] = pattern
            self.model.skin_rgba[i] = (*color, 1)

    def show_only(self, names: Sequence[str]) -> None:
        """Hides every other surface of the figure."""
        for i, surface in enumerate(self.figure.surfaces):
            self.model.skin_group[i] = _SHOWN if surface.name in names else _HIDDEN

    def furnish(self, room: Room) -> None:
        """Sets walls, furniture and lights.

        Raises:
            ShapeError: the room has more boxes or lights than the stage.
        """
        if len(room.furniture) > N_BOXES or len(room.lights) > N_LIGHTS:
            raise ShapeError(
                f"The room has {len(room.furniture)} boxes and {len(room.lights)} lights; valid are at most "
                f"{N_BOXES} and {N_LIGHTS}"
            )
        self._set_walls(room)
        for i in range(N_BOXES):
            geom = len(_WALLS) + 2 + i
            self.model.geom_group[geom] = _SHOWN if i < len(room.furniture) else _HIDDEN
            if i < len(room.furniture):
                self._set_box(geom, room.furniture[i])
        self._set_lights(room)

    def _set_walls(self, room: Room) -> None:
        low, high = np.array(room.low), np.array(room.high)
        (x, z), (wide, deep) = (low + high) / 2, (high - low) / 2
        top = room.ceiling
        if top is None:
            self._set_slab(_FLOOR, (x, 0, z), (90, 0), (_OUTDOORS_M, _OUTDOORS_M), room.floor)
        else:
            self._set_slab(_FLOOR, (x, 0, z), (90, 0), (wide, deep), room.floor)
            self._set_slab(_ROOF, (x, top, z), (-90, 0), (wide, deep), Pattern(0, room.roof))
            sides = (
                (low[0], z, -90, deep), (high[0], z, 90, deep), (x, low[1], 180, wide), (x, high[1], 0, wide)
            )  # fmt: skip
            for geom, pattern, (at_x, at_z, turn, half) in zip(_WALLS, room.walls, sides, strict=True):
                self._set_slab(geom, (at_x, top / 2, at_z), (0, turn), (half, top / 2), pattern)
        for geom in (_ROOF, *_WALLS):
            self.model.geom_group[geom] = _HIDDEN if top is None else _SHOWN

    def _set_slab(
        self,
        geom: int,
        face: Sequence[float],
        turn: tuple[float, float],
        half: Sequence[float],
        pattern: Pattern,
    ) -> None:
        """A thin box behind its face; ``turn`` is that of its outward z axis about x and then y, degrees."""
        turned = Rotation.from_euler("xy", turn, degrees=True).as_matrix()
        self.data.geom_xpos[geom] = np.array(face) + _SLAB_M * turned[:, 2]
        self.data.geom_xmat[geom] = turned.ravel()
        self.model.geom_size[geom] = (*half, _SLAB_M)
        self._paint(geom, pattern.index, pattern.color)

    def _set_box(self, geom: int, box: Box) -> None:
        self.data.geom_xpos[geom] = box.center
        self.data.geom_xmat[geom] = Rotation.from_euler("y", box.heading).as_matrix().ravel()
        self.model.geom_size[geom] = box.half
        self._paint(geom, self._n_patterns + box.pattern.index, box.pattern.color)

    def _paint(self, geom: int, material: int, color: Color) -> None:
        self.model.geom_matid[geom] = material
        self.model.geom_rgba[geom] = (*color, 1)

    def _set_lights(self, room: Room) -> None:
        import mujoco

        kind = mujoco.mjtLightType
        for i in range(N_LIGHTS):
            self.model.light_active[i] = i < len(room.lights)
            if i >= len(room.lights):
                continue
            light = room.lights[i]
            self.model.light_castshadow[i] = light.shadow
            self.model.light_type[i] = (
                kind.mjLIGHT_DIRECTIONAL if light.shadow else kind.mjLIGHT_POINT
            ).value
            self.model.light_diffuse[i] = light.color
            self.data.light_xpos[i], self.data.light_xdir[i] = light.place, light.direction
        self.model.vis.headlight.ambient[:] = room.ambient
        self.model.vis.headlight.diffuse[:] = np.array(room.ambient) * 0.4

    def shoot(self, matrix: Numbers, rotation: Numbers, translation: Numbers, size: tuple[int, int]) -> Shot:
        """Takes a picture.

        Args:
            matrix: K, px, with square pixels and no skew; the middle of the first pixel is (0, 0).
            rotation: R, ground to camera (x right, y down, z forward).
            translation: t, m.
            size: height and width, px.

        Raises:
            ShapeError: the picture is too large, or the pixels are not square.
        """
        import mujoco

        height, width = size
        if not (0 < height <= MAX_PX and 0 < width <= MAX_PX):
            raise ShapeError(f"A picture of {width} by {height} px was asked for; valid is 1 to {MAX_PX}")
        if matrix[0, 0] != matrix[1, 1] or matrix[0, 1] != 0:
            raise ShapeError(
                "The renderer's pixels are square and not skewed; K has other focal lengths or a skew"
            )
        self._gl.make_current()
        mujoco.mjv_updateScene(
            self.model,
            self.data,
            self._option,
            None,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL.value,
            self._scene,
        )
        for geom in self._scene.geoms[: self._scene.ngeom]:
            if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM.value and geom.objid in (_ROOF, *_WALLS):
                geom.castshadow = 0  # or no light would come in
        _aim(self._scene, matrix, rotation, translation, size)
        view = mujoco.MjrRect(0, 0, width, height)
        pixels = np.empty((height, width, 3), np.uint8)
        codes, depth = np.empty_like(pixels), np.empty((height, width), np.float32)
        mujoco.mjr_render(view, self._scene, self._context)
        mujoco.mjr_readPixels(pixels, None, view, self._context)
        flags = (mujoco.mjtRndFlag.mjRND_SEGMENT.value, mujoco.mjtRndFlag.mjRND_IDCOLOR.value)
        for flag in flags:
            self._scene.flags[flag] = 1
        mujoco.mjr_render(view, self._scene, self._context)
        mujoco.mjr_readPixels(codes, depth, view, self._context)
        for flag in flags:
            self._scene.flags[flag] = 0
        return Shot(pixels[::-1], _metres(depth[::-1]), self._labels(codes[::-1]))

    def _labels(self, codes: NDArray[np.uint8]) -> NDArray[np.int32]:
        """Surfaces of the figure from the colours that the renderer gave to what it drew."""
        import mujoco

        skin = mujoco.mjtObj.mjOBJ_SKIN.value
        table = np.full(self._scene.ngeom + 1, NOTHING, np.int32)
        for geom in self._scene.geoms[: self._scene.ngeom]:
            if geom.segid >= 0 and geom.objtype == skin:
                table[geom.segid + 1] = geom.objid
        return table[codes.astype(np.int32) @ np.array([1, 1 << 8, 1 << 16], np.int32)]


def _aim(scene: Any, matrix: Numbers, rotation: Numbers, translation: Numbers, size: tuple[int, int]) -> None:
    """Sets the scene's camera; the renderer takes the width of the frustum from the picture's aspect."""
    focal, (x, y) = matrix[0, 0], matrix[:2, 2]
    height, width = size
    for camera in scene.camera:
        camera.pos = -rotation.T @ translation
        camera.forward, camera.up = rotation[2], -rotation[1]
        camera.frustum_near, camera.frustum_far = _NEAR_M, _FAR_M
        camera.frustum_center = ((width - 1) / 2 - x) / focal * _NEAR_M
        camera.frustum_top = (y + 0.5) / focal * _NEAR_M
        camera.frustum_bottom = (y + 0.5 - height) / focal * _NEAR_M
        camera.orthographic = 0


def _metres(depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Depth along the axis from the renderer's values, 1 at the near plane and 0 at the far one."""
    span = _FAR_M - _NEAR_M
    return (_FAR_M * _NEAR_M / span / (depth.astype(np.float64) + _NEAR_M / span)).astype(np.float32)


def _compile(figure: Figure, patterns: NDArray[np.uint8]) -> Any:
    """Bodies without joints that carry the skins, planes and boxes, lights and materials."""
    import mujoco

    spec = mujoco.MjSpec()
    spec.visual.global_.offwidth = spec.visual.global_.offheight = MAX_PX
    spec.visual.quality.shadowsize, spec.visual.quality.offsamples = _SHADOW_PX, _SAMPLES
    spec.visual.headlight.specular = [0, 0, 0]
    spec.stat.extent, spec.stat.center = 3.0, [0.0, 1.0, 0.0]
    for i, pattern in enumerate(patterns):
        _add_material(spec, f"flat{i}", pattern)
    for i, pattern in enumerate(patterns):
        _add_material(spec, f"cube{i}", pattern, cube=True)
    sky = spec.add_texture(name="sky", type=mujoco.mjtTexture.mjTEXTURE_SKYBOX, width=64, height=64)
    sky.builtin = mujoco.mjtBuiltin.mjBUILTIN_GRADIENT
    sky.rgb1, sky.rgb2 = [0.55, 0.68, 0.85], [0.80, 0.82, 0.84]
    for name in figure.body_names:
        spec.worldbody.add_body(name=name)
    world = {"contype": 0, "conaffinity": 0}
    for _ in range(2 + len(_WALLS)):
        spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, size=[1, 1, 1], material="flat0", **world)
    for _ in range(N_BOXES):
        spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, size=[1, 1, 1], material="cube0", **world)
    for _ in range(N_LIGHTS):
        spec.worldbody.add_light(ambient=[0, 0, 0], specular=[0.1, 0.1, 0.1], attenuation=[1, 0, 0])
    for surface in figure.surfaces:
        _add_skin(spec, figure, surface)
    return spec.compile()


def _add_material(spec: Any, name: str, pattern: NDArray[np.uint8], cube: bool = False) -> None:
    import mujoco

    kind = mujoco.mjtTexture.mjTEXTURE_CUBE if cube else mujoco.mjtTexture.mjTEXTURE_2D
    step = PATTERN_PX // _CUBE_PX
    pixels = np.tile(pattern[::step, ::step], (6, 1, 1)) if cube else pattern
    texture = spec.add_texture(
        name=name, type=kind, width=pixels.shape[1], height=pixels.shape[0], nchannel=3
    )
    texture.data = pixels.tobytes()
    material = spec.add_material(
        name=name, texuniform=not cube, texrepeat=[1, 1], specular=0.08, shininess=0.2
    )
    textures = list(material.textures)
    textures[mujoco.mjtTextureRole.mjTEXROLE_RGB.value] = name
    material.textures = textures


def _add_skin(spec: Any, figure: Figure, surface: Surface) -> None:
    columns = np.flatnonzero((surface.weights > 0).any(axis=0)).tolist()
    names = [surface.bodies[column] for column in columns]
    bodies = [figure.body_names.index(name) for name in names]
    skin = spec.add_skin(name=surface.name, material="flat0")
    skin.vert = surface.vertices.astype(np.float32).ravel().tolist()
    skin.face = surface.faces.ravel().tolist()
    skin.texcoord = (surface.texcoord * _PATTERN_PER_M).astype(np.float32).ravel().tolist()
    skin.bodyname = names
    skin.bindpos = figure.positions[bodies].ravel().tolist()
    turns = Rotation.from_matrix(figure.rotations[bodies]).as_quat(scalar_first=True)
    skin.bindquat = turns.ravel().tolist()
    carried = [np.flatnonzero(surface.weights[:, column] > 0) for column in columns]
    skin.vertid = [vertices.tolist() for vertices in carried]
    skin.vertweight = [
        surface.weights[vertices, column].tolist() for column, vertices in zip(columns, carried, strict=True)
    ]
