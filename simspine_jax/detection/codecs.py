"""Keypoints of a crop as what detectors give, and back: SimCC's bins and heat maps, with their losses.

=========  ==========================================  ==============================
codec      output of a detector                        of
=========  ==========================================  ==============================
`SimCC`    logits x ``[B K 384]`` and y ``[B K 512]``  RTMPose, SpinePose
`MsraMap`  heat maps ``[B 64 48 K]``, 4 px a cell      HRNet
`UdpMap`   heat maps ``[B 64 48 K]``, first and last   ViTPose
           cells on the first and last pixels
=========  ==========================================  ==============================

A training asks for `Codec.encode` and `Codec.loss`; an evaluation for `flip_mean` (the flip test),
`Codec.decode` and `picture_keypoints`. All of them take batches. Keypoints are in px of the crop, the middle
of its first pixel at (0, 0). Everything is float32; what is not labelled has the weight 0, and what is not
found is NaN.

Sources: Y. Li et al., SimCC, 2022; T. Jiang et al., RTMPose, 2023; B. Xiao et al., Simple baselines for human
pose estimation and tracking, 2018 (MSRA); J. Huang et al., The devil is in the details (UDP), 2020; F. Zhang
et al., DarkPose, 2020. Where they leave something open it is as in MMPose.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from simspine_jax.arrays import Array, Bool, Float, Int
from simspine_jax.errors import ShapeError
from simspine_jax.pictures import CROP_SIZE
from simspine_jax.skeleton import SWAP

SPLIT = 2
"""Bins a pixel of SimCC, as published."""

REACH = 3
"""Standard deviations from a keypoint within which its label counts as drawn, and heat maps are drawn."""

BETA = 10.0
"""RTMPose's: by which logits and labels of SimCC are multiplied before their softmax."""

BLUR_CELLS = 11
"""Width of DarkPose's blur for heat maps of sigma 2."""

BLUR_SIGMA = 0.3 * ((BLUR_CELLS - 1) / 2 - 1) + 0.8
"""Its deviation, cells, by OpenCV's rule."""

HEAT_RANGE = (1e-3, 50.0)
"""To which MMPose clips a blurred heat map before it takes logarithms."""

Output = Array | tuple[Array, Array]
"""Of a detector: a heat map, or SimCC's logits along x and y."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Target:
    """What a detector is trained towards.

    Attributes:
        labels: shaped as the detector's output.
        weight: 1 where a keypoint counts, else 0.
    """

    labels: Output
    weight: Float[Array, "B K"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Found:
    """Keypoints that a detector found.

    Attributes:
        keypoints: px of the crop; NaN where the score is not above 0.
        score: the output's value at the keypoint, which is no probability.
    """

    keypoints: Float[Array, "B K 2"]
    score: Float[Array, "B K"]


class Codec(Protocol):
    """What training and evaluation ask of a codec.

    Attributes:
        udp: how published detectors' crops were made; see `pictures.crop_matrix`.
    """

    udp: ClassVar[bool]

    def encode(self, keypoints: Float[Array, "B K 2"], labelled: Bool[Array, "B K"]) -> Target:
        """Labels of keypoints; those that are not labelled or too far outside of the crop weigh nothing."""
        ...

    def decode(self, output: Output) -> Found:
        """The keypoints of an output."""
        ...

    def mirrored(self, output: Output) -> Output:
        """The output of a mirrored crop as one of the crop itself: turned back, left and right exchanged."""
        ...

    def loss(self, output: Output, target: Target) -> Float[Array, ""]:
        """How far an output is from its target, as published."""
        ...


def flip_mean(codec: Codec, output: Output, of_mirrored: Output) -> Output:
    """The flip test: the mean of a crop's output and that of its mirror image.

    Args:
        codec: of the detector.
        output: of the crops ``[B h w 3]``.
        of_mirrored: of ``crops[:, :, ::-1]``.
    """
    return jax.tree.map(lambda a, b: 0.5 * (a + b), output, codec.mirrored(of_mirrored))


def picture_keypoints(
    keypoints: Float[NDArray, "B K 2"], matrix: Float[NDArray, "B 2 3"]
) -> Float[NDArray, "B K 2"]:
    """Keypoints of crops in px of their pictures, in float64.

    Crops that were mirrored (the map's determinant is negative) show the person's left side as a right one;
    their keypoints are exchanged, too, so that they are the person's again.

    Args:
        keypoints: px of the crop.
        matrix: px of the picture to px of the crop, as in `datasets.CropBatch`.

    Raises:
        ShapeError: a mirrored crop has other than the 37 keypoints.
    """
    matrix, keypoints = np.asarray(matrix, np.float64), np.asarray(keypoints, np.float64)
    linear, shift = matrix[..., :2], matrix[..., None, :, 2]
    back = np.einsum("...ij,...kj->...ki", np.linalg.inv(linear), keypoints - shift)
    mirrored = np.linalg.det(linear) < 0
    if not mirrored.any():
        return back
    _check_keypoints(keypoints.shape[-2])
    return np.where(mirrored[..., None, None], back[..., SWAP, :], back)


@dataclass(frozen=True)
class SimCC:
    """Coordinates as classes: one Gaussian over bins along x and one along y, not normalised.

    Keypoints are rounded to bins, so labels are exact to half a bin. Mirrored bins are one bin off, for the
    middle of the crop is not between two of them: MMPose leaves that, and so does `mirrored`.

    Attributes:
        size: height and width of the crops, px.
        split: bins a pixel.
        sigma: of the Gaussians along x and y, bins.
    """

    size: tuple[int, int] = CROP_SIZE
    split: float = SPLIT
    sigma: tuple[float, float] = (4.9, 5.66)

    udp: ClassVar[bool] = False

    @property
    def bins(self) -> tuple[int, int]:
        """Along x and along y."""
        return round(self.size[1] * self.split), round(self.size[0] * self.split)

    @partial(jax.jit, static_argnames="self")
    def encode(self, keypoints: Float[Array, "B K 2"], labelled: Bool[Array, "B K"]) -> Target:
        """Labels; a keypoint counts if its Gaussian reaches into the crop along x and y."""
        keypoints, labelled = _known(keypoints, labelled)
        middle = jnp.round(keypoints * self.split)
        reach = REACH * jnp.asarray(self.sigma, jnp.float32)
        counts = labelled & _drawn(middle, reach, self.bins)
        labels = tuple(
            _gaussian(middle[..., axis, None], bins, self.sigma[axis]) * counts[..., None]
            for axis, bins in enumerate(self.bins)
        )
        return Target((labels[0], labels[1]), counts.astype(jnp.float32))

    @partial(jax.jit, static_argnames=("self", "sub_pixel"))
    def decode(self, output: Output, *, sub_pixel: bool = False) -> Found:
        """The bins of most heat; the score is the lesser of theirs.

        Args:
            output: logits along x and y.
            sub_pixel: whether a parabola through the best bin and its neighbours says where between bins
                the keypoint is; MMPose does without.
        """
        x, y = self._checked(output)
        score = jnp.minimum(x.max(-1), y.max(-1))
        bins = jnp.stack([_peak(x, sub_pixel), _peak(y, sub_pixel)], axis=-1)
        return _found(bins / self.split, score)

    @partial(jax.jit, static_argnames="self")
    def mirrored(self, output: Output) -> Output:
        """See `Codec.mirrored`."""
        x, y = self._checked(output)
        _check_keypoints(x.shape[-2])
        return x[..., SWAP, ::-1], y[..., SWAP, :]

    @partial(jax.jit, static_argnames="self")
    def loss(self, output: Output, target: Target) -> Float[Array, ""]:
        """MMPose's KLDiscretLoss with softened labels, of RTMPose.

        Kullback-Leibler divergence of softmax(`BETA` labels) from softmax(`BETA` logits), its mean over bins,
        summed over people and keypoints, x and y, and divided by the number of keypoints only: twice the
        batch is twice the loss.
        """
        logits, labels = self._checked(output), self._checked(target.labels)
        total = jnp.zeros((), jnp.float32)
        for logit, label in zip(logits, labels, strict=True):
            wanted, given = jax.nn.log_softmax(BETA * label), jax.nn.log_softmax(BETA * logit)
            divergence = jnp.mean(jnp.exp(wanted) * (wanted - given), axis=-1)
            total += jnp.sum(divergence * target.weight)
        return total / target.weight.shape[-1]

    def _checked(self, output: Output) -> tuple[Array, Array]:
        x, y = (jnp.asarray(part, jnp.float32) for part in output)
        if (x.shape[-1], y.shape[-1]) != self.bins or x.shape[:-1] != y.shape[:-1]:
            raise ShapeError(f"SimCC's bins are {x.shape} and {y.shape}; valid is [B K {self.bins}]")
        return x, y


@dataclass(frozen=True)
class _HeatMap:
    """A Gaussian of height 1 for each keypoint, drawn as far as `REACH` deviations.

    Attributes:
        size: height and width of the crops, px.
        cells: height and width of the heat maps.
        sigma: of the Gaussian, cells.
    """

    size: tuple[int, int] = CROP_SIZE
    cells: tuple[int, int] = (64, 48)
    sigma: float = 2.0

    udp: ClassVar[bool] = False

    _shifts: ClassVar[bool]
    """Whether a mirrored map is moved a cell to the right."""

    def _placed(self, keypoints: Float[Array, "B K 2"]) -> tuple[Array, Array]:
        """Middles of the Gaussians and of the windows they are drawn in, cells ``[B K 2]``."""
        raise NotImplementedError

    @partial(jax.jit, static_argnames="self")
    def encode(self, keypoints: Float[Array, "B K 2"], labelled: Bool[Array, "B K"]) -> Target:
        """Heat maps ``[B h w K]``; a keypoint counts if its window reaches into the map."""
        keypoints, labelled = _known(keypoints, labelled)
        middle, window = self._placed(keypoints)
        reach = REACH * self.sigma
        counts = labelled & _drawn(window, reach, self.cells[::-1])
        rows_columns = []
        for axis, cells in ((1, self.cells[0]), (0, self.cells[1])):
            heat = _gaussian(middle[..., axis, None], cells, self.sigma)
            inside = jnp.abs(jnp.arange(cells, dtype=jnp.float32) - window[..., axis, None]) <= reach
            rows_columns.append(jnp.where(inside & counts[..., None], heat, 0.0).swapaxes(-1, -2))
        rows, columns = rows_columns
        return Target(rows[..., :, None, :] * columns[..., None, :, :], counts.astype(jnp.float32))

    @partial(jax.jit, static_argnames="self")
    def mirrored(self, output: Output) -> Output:
        """See `Codec.mirrored`."""
        heat = self._checked(output)
        _check_keypoints(heat.shape[-1])
        turned = heat[..., ::-1, :]
        if self._shifts:
            turned = jnp.concatenate([turned[..., :1, :], turned[..., :-1, :]], axis=-2)
        return turned[..., SWAP]

    @partial(jax.jit, static_argnames="self")
    def loss(self, output: Output, target: Target) -> Float[Array, ""]:
        """MMPose's KeypointMSELoss with target weights: weighted squares, their mean over everything."""
        heat, labels = self._checked(output), self._checked(target.labels)
        return jnp.mean((heat - labels) ** 2 * target.weight[..., None, None, :])

    def _checked(self, output: Output) -> Array:
        heat = jnp.asarray(output, jnp.float32)
        if heat.ndim < 3 or heat.shape[-3:-1] != self.cells:
            raise ShapeError(
                f"Heat maps have the shape {heat.shape}; valid is [B {self.cells[0]} {self.cells[1]} K]"
            )
        return heat


@dataclass(frozen=True)
class MsraMap(_HeatMap):
    """Heat maps of whole cells; what is decoded moves a quarter of a cell towards the hotter neighbour.

    Keypoints are rounded to cells, so labels are exact to half a cell; those nearer than half a cell to the
    right or lower edge of the crop are rounded to the cell beyond the map, whose Gaussian reaches into it.
    """

    _shifts: ClassVar[bool] = True

    def _placed(self, keypoints: Float[Array, "B K 2"]) -> tuple[Array, Array]:
        middle = jnp.trunc(keypoints / self._stride() + 0.5)
        return middle, middle

    @partial(jax.jit, static_argnames="self")
    def decode(self, output: Output) -> Found:
        """The hottest cells, a quarter of a cell towards their hotter neighbours; the score is their heat."""
        peak = _Peak.of(self._checked(output))
        cell = peak.cell.astype(jnp.float32)
        last = jnp.asarray(self.cells[::-1]) - 1
        # MMPose's test: not in the first two columns, the last, or the first row; likewise along y.
        inner = (peak.cell > 1) & (peak.cell < last) & (peak.cell[..., ::-1] > 0)
        slope = jnp.stack([peak.at(1, 0) - peak.at(-1, 0), peak.at(0, 1) - peak.at(0, -1)], axis=-1)
        return _found((cell + jnp.where(inner, 0.25 * jnp.sign(slope), 0.0)) * self._stride(), peak.heat)

    def _stride(self) -> Array:
        return jnp.asarray(self.size[::-1], jnp.float32) / jnp.asarray(self.cells[::-1], jnp.float32)


@dataclass(frozen=True)
class UdpMap(_HeatMap):
    """Heat maps whose corner cells lie on the crop's corner pixels, with Gaussians between the cells.

    Labels are decoded exactly (1e-3 px) but for those within a window of the edge: the published blur sees
    nothing beyond the map, which draws keypoints at its edge inwards by up to a cell.

    `decode` is the inverse of `encode` in px of any crop: both take (size - 1) / (cells - 1) px for a cell.
    MMPose's decoder takes size / (cells - 1) and goes to the picture without the crop's map; with crops of
    `pictures.crop_matrix` with ``udp``, of which published weights have learned, both give the same px of the
    picture. Of other crops keypoints are right, too, but the person is half a percent larger than in those.
    """

    udp: ClassVar[bool] = True

    _shifts: ClassVar[bool] = False

    def _placed(self, keypoints: Float[Array, "B K 2"]) -> tuple[Array, Array]:
        middle = keypoints / self._stride()
        return middle, jnp.trunc(middle + 0.5)

    @partial(jax.jit, static_argnames="self")
    def decode(self, output: Output) -> Found:
        """The hottest cells, and from there a Newton step on the logarithm of the blurred map."""
        heat = self._checked(output)
        peak = _Peak.of(heat)
        blurred = _blurred(heat)
        hottest = blurred.max((-3, -2), keepdims=True)
        level = heat.max((-3, -2), keepdims=True) / jnp.where(hottest > 0, hottest, 1.0)
        smooth = _Peak(blurred * level, peak.cell, peak.heat)
        cell = peak.cell.astype(jnp.float32) - _newton_step(smooth)
        return _found(cell * self._stride(), peak.heat)

    def _stride(self) -> Array:
        pixels, cells = jnp.asarray(self.size[::-1]), jnp.asarray(self.cells[::-1])
        return (pixels - 1).astype(jnp.float32) / (cells - 1).astype(jnp.float32)


@dataclass(frozen=True, eq=False)
class _Peak:
    """The hottest cell of each map ``[B h w K]``: its x and y ``[B K 2]``, and its heat ``[B K]``."""

    maps: Array
    cell: Int[Array, "B K 2"]
    heat: Float[Array, "B K"]

    @classmethod
    def of(cls, maps: Array) -> _Peak:
        flat = maps.reshape(*maps.shape[:-3], -1, maps.shape[-1])
        place = jnp.argmax(flat, axis=-2)
        cell = jnp.stack([place % maps.shape[-2], place // maps.shape[-2]], axis=-1)
        return cls(maps, cell, flat.max(-2))

    def at(self, right: int, down: int) -> Float[Array, "B K"]:
        """The heat so many cells away; beyond the edge it is the edge's."""
        height, width = self.maps.shape[-3:-1]
        x = jnp.clip(self.cell[..., 0] + right, 0, width - 1)
        y = jnp.clip(self.cell[..., 1] + down, 0, height - 1)
        flat = self.maps.reshape(*self.maps.shape[:-3], -1, self.maps.shape[-1])
        return jnp.take_along_axis(flat, (y * width + x)[..., None, :], axis=-2)[..., 0, :]


def _newton_step(peak: _Peak) -> Float[Array, "B K 2"]:
    """From the cell to the top of the logarithm's parabola, cells, to be taken away; as MMPose for UDP."""

    def log(right: int, down: int) -> Array:
        return jnp.log(jnp.clip(peak.at(right, down), *HEAT_RANGE))

    middle, left, right, up, down = log(0, 0), log(-1, 0), log(1, 0), log(0, -1), log(0, 1)
    tiny = float(np.finfo(np.float32).eps)
    dx, dy = 0.5 * (right - left), 0.5 * (down - up)
    dxx, dyy = right - 2 * middle + left + tiny, down - 2 * middle + up + tiny
    dxy = 0.5 * (log(1, 1) - right - down + 2 * middle - left - up + log(-1, -1))
    determinant = dxx * dyy - dxy * dxy
    step = jnp.stack([dyy * dx - dxy * dy, dxx * dy - dxy * dx], axis=-1)
    return step / jnp.where(determinant == 0, 1.0, determinant)[..., None]


def _blurred(maps: Float[Array, "B h w K"]) -> Float[Array, "B h w K"]:
    """DarkPose's blur, with nothing around the maps: one small matrix along each axis."""
    rows, columns = (jnp.asarray(_blur_matrix(cells)) for cells in maps.shape[-3:-1])
    tall = jnp.einsum("ij,...jwk->...iwk", rows, maps, precision="highest")
    return jnp.einsum("ij,...hjk->...hik", columns, tall, precision="highest")


def _blur_matrix(cells: int) -> NDArray[np.float32]:
    apart = np.subtract.outer(np.arange(cells), np.arange(cells))
    half = BLUR_CELLS // 2
    whole = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * BLUR_SIGMA**2)).sum()
    weights = np.exp(-(apart**2) / (2 * BLUR_SIGMA**2)) / whole
    return np.where(np.abs(apart) <= half, weights, 0.0).astype(np.float32)


def _known(keypoints: Array, labelled: Array) -> tuple[Array, Array]:
    """Keypoints that are finite everywhere, and which of them are labelled and known."""
    if keypoints.shape != (*labelled.shape, 2):
        raise ShapeError(
            f"Keypoints have the shape {keypoints.shape} and their mask {labelled.shape}; "
            "valid is [B K 2] and [B K]"
        )
    known = labelled & jnp.isfinite(keypoints).all(-1)
    return jnp.where(known[..., None], keypoints, 0.0).astype(jnp.float32), known


def _drawn(middle: Array, reach: Array | float, ends: tuple[int, ...]) -> Bool[Array, "B K"]:
    """Whether a window reaches into the crop or map, by MMPose's rule."""
    return jnp.all((middle - reach < jnp.asarray(ends)) & (middle + reach + 1 >= 0), axis=-1)


def _gaussian(middle: Array, count: int, sigma: float) -> Array:
    return jnp.exp(-((jnp.arange(count, dtype=jnp.float32) - middle) ** 2) / (2 * sigma**2))


def _peak(logits: Float[Array, "B K bins"], between: bool) -> Float[Array, "B K"]:
    """The bin of most heat, and if asked for where between it and its neighbours a parabola has its top."""
    best = jnp.argmax(logits, axis=-1)
    if not between:
        return best.astype(jnp.float32)
    last = logits.shape[-1] - 1
    near = jnp.clip(best[..., None] + jnp.arange(-1, 2), 0, last)
    below, middle, above = jnp.moveaxis(jnp.take_along_axis(logits, near, axis=-1), -1, 0)
    bend = below - 2 * middle + above
    inner = (best > 0) & (best < last) & (bend < 0)
    return best + jnp.where(inner, 0.5 * (below - above) / jnp.where(inner, bend, 1.0), 0.0)


def _found(keypoints: Array, score: Array) -> Found:
    return Found(jnp.where((score > 0)[..., None], keypoints, jnp.nan), score)


def _check_keypoints(count: int) -> None:
    if count != len(SWAP):
        raise ShapeError(f"There are {count} keypoints to mirror; valid are the {len(SWAP)} of the skeleton")
