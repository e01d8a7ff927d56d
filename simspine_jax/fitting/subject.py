"""One subject from pixels to vertebrae: sizes, marker offsets, cameras and all poses in one problem.

Instead of triangulating, scaling and then solving poses, all unknowns are found together from the pictures,
so that each is found with what all frames and cameras say of it. How wrong the detector is, keypoint by
keypoint and view by view, and for how long errors last, is found from what remains.

Source of the method: bundle adjustment (B. Triggs et al., 2000) with a body model instead of points, on the
Schur complement; frames, which are the block-diagonal part there, are tied in time here.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from simspine_jax.arrays import Array, Float
from simspine_jax.errors import ShapeError, UnknownNameError
from simspine_jax.fitting.lumbar import Lumbar, LumbarEvidence, Solved, released
from simspine_jax.fitting.parameters import (
    PER_CAMERA,
    FitPriors,
    Layout,
    Prior,
    Rig,
    Segment,
    cameras_of,
    make_layout,
    make_prior,
    moved_rig,
    rig_of,
    with_height,
)
from simspine_jax.fitting.solving import Fitted, Whole, descend
from simspine_jax.fitting.spread import PAIRS, Moments, no_spread, posterior_moments
from simspine_jax.fitting.terms import (
    Fixed,
    FrameData,
    LiftedData,
    Setting,
    Term,
    all_expected,
    look,
    markers_of,
)
from simspine_jax.geometry.cameras import Cameras
from simspine_jax.kinematics.crossed import settled
from simspine_jax.kinematics.lumbar import DEVIATION
from simspine_jax.kinematics.model import SpineModel

FIRST_NOISE = 0.03
"""Deviation of keypoints in the first round, as a share of the person's size in the picture."""

LEAST_NOISE_PX = 0.05
"""So that exact pictures don't end in a division by 0."""

RAYLEIGH_MEDIAN = 1.1774
"""Median length of a vector whose two parts are standard normal."""

MOST_FOLLOWED = 0.8
"""Share of a keypoint's errors' variance that poses are taken to follow, at most."""

LONGEST = 60.0
"""Frames over which errors may be alike, at most, as an estimate."""

ALONE_ACCELERATION_STD = 1000.0
"""Of the whole body's place where one camera sees it, m/s^2: so weak that it does nothing but bridge gaps.

A body that is smaller and nearer accelerates less. One camera leaves size and distance open, and a tighter
one would find people too small: frames by the hundred outweigh what is known of people's sizes.
"""

EARLY_TOLERANCE, EARLY_STEPS = 10.0, 15
"""`FitOptions.tolerance` and ``max_steps`` of all rounds but the last: weights are still to be found."""

HEIGHT_STD = 0.01
"""Share by which a subject's height as measured may differ from that of a body of its segments' sizes."""

FEW_TOGETHER = 0.1
"""Share of frames that two cameras see, below which a subject counts as seen by one: a stray keypoint in
another camera says nothing of its distance."""

LEAST_KEYPOINTS = 4
"""Of the model's markers that some camera must see in a frame for it to count."""


class FitStatus(enum.IntEnum):
    """How a fit ended."""

    CONVERGED = 0
    MAX_STEPS = 1
    TOO_LITTLE_DATA = 2
    """No frame shows enough keypoints, so nothing was fitted."""
    FAILED = 3
    """No step made the objective less, far from where its gradient vanishes."""


_PRIORS = FitPriors()


@dataclass(frozen=True)
class FitOptions:
    """Settings of a fit.

    Attributes:
        priors: of sizes, offsets, cameras and clocks.
        acceleration_std: of each free coordinate, rad/s^2 or m/s^2, from one frame to the next; but see
            `ALONE_ACCELERATION_STD`. A first guess where it is ``adaptive``.
        velocity_std: of each free coordinate, rad/s or m/s; so weak that it only bridges long gaps.
        adaptive: whether to find from each clip how fast each of its coordinates changes; in float64 alone.
        marginal: whether what all frames share is found for the poses that the data leave possible, as
            `fitting.spread` has it, and not for the likeliest alone; in float64 alone, and not where one
            camera sees the subject: there poses spread along its rays, and people farther away fit all of
            them better.
        pose_std: of inner coordinates from the model's default pose, rad or m; the root is free.
            The pull counts once in a clip, shared by its frames: counted in every frame, it would outweigh
            what is seen of someone who sits, and sizes and offsets would make up for it.
        marker_std_m: of 3D markers, where there are any.
        noise_px: of keypoints that are sure (others err as much more as they are less sure), which intervals
            then don't fall below; None to find it from what remains, by view and keypoint.
        correlated: whether to find from what remains for how many frames errors are alike.
        symmetric: whether offsets of left and right markers mirror each other.
        fixed_markers: without offset.
        height_m: of the subject, if it was measured, to `HEIGHT_STD`.
        max_steps: of the last round.
        tolerance: of the objective, a negative log posterior, that a last step may still promise.
        rounds: the first is with noise that is guessed; from the second on noise, the motion's prior and
            what poses leave open are found from the round before.
        lumbar: ``coupled`` as the model ships, in a ``rhythm`` of the subject's own, or ``free``; see
            `fitting.lumbar`. For the latter two the coupled fit is made first.
        lumbar_std: of free levels from the model's rhythm in each frame, rad.
    """

    priors: FitPriors = _PRIORS
    acceleration_std: float = 10.0
    velocity_std: float = 100.0
    adaptive: bool = True
    marginal: bool = True
    pose_std: float = 1.0
    marker_std_m: float = 0.01
    noise_px: float | None = None
    correlated: bool = True
    symmetric: bool = True
    fixed_markers: tuple[str, ...] = ()
    height_m: float | None = None
    max_steps: int = 200
    tolerance: float = 1e-2
    rounds: int = 4
    lumbar: Lumbar = "coupled"
    lumbar_std: float = DEVIATION

    def __post_init__(self) -> None:
        if self.lumbar not in get_args(Lumbar):
            raise UnknownNameError("Lumbar", self.lumbar, "the choices", get_args(Lumbar))
        if self.lumbar == "rhythm" and not self.priors.rhythm > 0:
            raise ShapeError(f"The rhythm's deviation is {self.priors.rhythm}; valid is a number above 0")
        for name in (
            "acceleration_std", "velocity_std", "pose_std", "marker_std_m", "tolerance", "lumbar_std",
        ):  # fmt: skip
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ShapeError(f"{name} is {getattr(self, name)}; valid is a finite number above 0")
        for name in ("max_steps", "rounds"):
            if getattr(self, name) < 1:
                raise ShapeError(f"{name} is {getattr(self, name)}; valid is from 1")
        if self.noise_px is not None and not self.noise_px > 0:
            raise ShapeError(f"noise_px is {self.noise_px}; valid is a number above 0, or None to find it")
        if self.height_m is not None and not (np.isfinite(self.height_m) and self.height_m > 0):
            raise ShapeError(f"height_m is {self.height_m}; valid is a number above 0, or None")


@dataclass(frozen=True, eq=False)
class LiftedMarkers:
    """What a lifter makes of a clip, for a rig of one camera.

    Attributes:
        points: ``[T K 3]`` m from the root marker along the camera's axes (x right, y down, z forward), of
            the model's markers in its order and of a body as large as the start's; NaN where missing.
        std: ``[K 3]`` m, of errors along these axes; of the root nothing counts.
        alike_frames: over how many frames errors are alike. So many count as one, and a whole clip as one at
            least: a lifter that errs does so for seconds, and counted in every frame it would outweigh
            pictures and be believed to millimetres.
        root: number of the root marker.
        alike_markers: how many markers err alike, which count as one likewise.
        size_std: of the size of the start's body, as a share; it counts once in all clips.
    """

    points: NDArray[np.floating]
    std: NDArray[np.floating]
    alike_frames: float
    root: int
    alike_markers: float = 1.0
    size_std: float = 0.1

    def __post_init__(self) -> None:
        if self.points.ndim != 3 or self.points.shape[-1] != 3:
            raise ShapeError(f"lifted points have shape {self.points.shape}; valid is [T K 3]")
        if self.std.shape != self.points.shape[1:]:
            raise ShapeError(f"std has shape {self.std.shape}; valid is {self.points.shape[1:]}")
        known = np.arange(len(self.std)) != self.root
        if known.all() or not (np.isfinite(self.std[known]) & (self.std[known] > 0)).all():
            raise ShapeError(
                f"root is {self.root} and the least deviation is {np.min(self.std)}; valid are a marker's "
                "number, and deviations above 0 of all others"
            )
        for name in ("alike_frames", "alike_markers", "size_std"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ShapeError(f"{name} is {getattr(self, name)}; valid is a finite number above 0")


@dataclass(frozen=True, eq=False)
class Clip:
    """What was seen of a subject in one stretch of time.

    Attributes:
        keypoints: ``[T V K 2]`` px, of the model's markers in its order; NaN where missing.
        confidence: ``[T V K]`` 0 to 1.
        markers: ``[T K 3]`` m, ground; NaN where missing; None for none at all.
        lifted: from a single camera; None for none at all.
    """

    keypoints: NDArray[np.floating]
    confidence: NDArray[np.floating]
    markers: NDArray[np.floating] | None = None
    lifted: LiftedMarkers | None = None

    def __post_init__(self) -> None:
        if self.keypoints.ndim != 4 or self.keypoints.shape[-1] != 2 or not len(self.keypoints):
            raise ShapeError(f"keypoints has shape {self.keypoints.shape}; valid is [T V K 2] with T from 1")
        if self.confidence.shape != self.keypoints.shape[:3]:
            raise ShapeError(
                f"confidence has shape {self.confidence.shape}; valid is {self.keypoints.shape[:3]}"
            )
        wanted = (len(self.keypoints), self.keypoints.shape[2], 3)
        if self.markers is not None and self.markers.shape != wanted:
            raise ShapeError(f"markers has shape {self.markers.shape}; valid is {wanted}")
        if self.lifted is not None and self.lifted.points.shape != wanted:
            raise ShapeError(f"lifted points have shape {self.lifted.points.shape}; valid is {wanted}")

    @property
    def known(self) -> NDArray[np.bool_]:
        """``[T V K]`` keypoints that are there."""
        return np.isfinite(self.keypoints).all(axis=-1) & (np.nan_to_num(self.confidence) > 0)

    @property
    def usable(self) -> NDArray[np.bool_]:
        """``[T]`` frames with enough keypoints and markers to count."""
        there = self.known.sum(axis=(1, 2))
        if self.markers is not None:
            there = there + np.isfinite(self.markers).all(axis=-1).sum(axis=-1)
        return there >= LEAST_KEYPOINTS


@dataclass(frozen=True, eq=False)
class Start:
    """Where a fit starts.

    Attributes:
        q: of each clip ``[T Q]``, free coordinates; NaN where there is no pose (taken from its neighbours).
        scale_factors: ``[B 3]``; None for the generic model's.
    """

    q: Sequence[NDArray[np.floating]]
    scale_factors: NDArray[np.floating] | None = None


@dataclass(frozen=True, eq=False)
class SubjectFit:
    """A fitted subject. Clips are padded to the longest; ``lengths`` says how long each is.

    Attributes:
        q: free coordinates, rad and m; NaN beyond a clip's end and in clips that show nothing.
        markers: of the model, ground, m.
        scale_factors: of each body.
        marker_offsets: in the bodies' frames, m.
        cameras: fitted, in their world (Z up).
        delays_s: how much later than the frames each camera took its pictures.
        noise_px: ``[V K]`` deviation of the detector's errors at a person of mean size.
        correlation_frames: over how many frames errors are alike.
        reprojection_px: ``[C T V K]`` distance between keypoint and fitted marker; NaN where there is none.
        objective: half a negative log posterior, in its own units; its mean over the spread if ``marginal``.
        status: how it ended.
        steps: of the last round.
        lengths: frames of each clip.
        theta: the shared vector.
        setting: static part of the problem.
        whole: its arrays, at the last round, but for the spread.
        lumbar: evidence for the treatment of the lumbar levels; None where they are coupled. With free levels
            ``q`` ends in departures from the rhythm; see `kinematics.lumbar.departing_lumbar`.
        spread: of poses, over which the objective was a mean; None where nothing was fitted.
    """

    q: NDArray[np.float64]
    markers: NDArray[np.float64]
    scale_factors: NDArray[np.float64]
    marker_offsets: NDArray[np.float64]
    cameras: Cameras | None
    delays_s: NDArray[np.float64]
    noise_px: NDArray[np.float64]
    correlation_frames: float
    reprojection_px: NDArray[np.float64]
    objective: float
    status: FitStatus
    steps: int
    lengths: tuple[int, ...]
    theta: Float[Array, " P"] = field(repr=False)
    setting: Setting = field(repr=False)
    whole: Whole = field(repr=False)
    lumbar: LumbarEvidence | None = None
    spread: Float[Array, "C T S Q"] | None = field(default=None, repr=False)


Tell = Callable[[str], None]
"""Called with a line about each round."""


def fit_subject(
    model: SpineModel,
    clips: Sequence[Clip],
    cameras: Cameras | None,
    rate_hz: float,
    start: Start,
    options: FitOptions | None = None,
    *,
    terms: Sequence[Term] = (),
    segments: Sequence[Segment] | None = None,
    tell: Tell | None = None,
) -> SubjectFit:
    """Fits one subject to all of its clips.

    Args:
        model: generic, with markers at the keypoints; its dtype is the computation's (float64 is advised).
        clips: of one subject and rig.
        cameras: of the rig, in their world (Z up); None where clips have markers alone.
        rate_hz: frames a second.
        start: poses to begin with, as `pipeline.fit` finds them.
        options: see `FitOptions`.
        terms: residuals of the user's own, in deviations, for one frame; see `terms.Term`.
        segments: bodies that are scaled alike; default: those that the paper's pipeline measures.
        tell: told about each round.

    Raises:
        ShapeError: clips, cameras and model don't go together.
    """
    options = options or FitOptions()
    n_cameras = 0 if cameras is None else len(cameras.names)
    _check(model, clips, n_cameras, rate_hz, start)
    seen = _Seen.of(clips, n_cameras, model.dtype)
    setting, prior = _with_priors(model, n_cameras, seen, options, terms, segments)
    rig = rig_of(cameras if cameras is not None else _no_cameras(), model.dtype)
    whole = _whole(model, prior, rig, seen, options, rate_hz)
    q, theta = _first(model, setting.layout, prior, seen, start)
    size = float(np.exp(np.mean(np.asarray(theta)[: setting.layout.n_scales])))
    whole = replace(whole, data=replace(whole.data, lifted=_lifted_data(clips, seen, size, model.dtype)))
    if not seen.usable.any():
        none = Fitted(q, theta, jnp.asarray(jnp.nan), jnp.int32(0), jnp.asarray(False))
        return _result(setting, whole, none, seen, None, 1.0, FitStatus.TOO_LITTLE_DATA)
    # Second differences of nearly equal variances are lost in float32.
    exact = q.dtype == jnp.float64
    options = replace(options, marginal=options.marginal and exact and not seen.by_one_camera)
    if options.marginal:
        whole = replace(whole, spread=no_spread(q, 2 * PAIRS))
    noise = _Noise.first(seen, options)
    fitted, tau, moments = None, 1.0, None
    for number in range(options.rounds):
        last = number == options.rounds - 1
        whole = _with_noise(whole, seen, noise, tau)
        if number and exact and (options.adaptive or options.marginal or options.noise_px is None):
            moments = posterior_moments(setting, whole, q, theta, tau)
            whole = _with_moments(whole, moments, options, alone=seen.by_one_camera)
        whole = _with_velocity(setting, whole, q, theta, seen)
        fitted = descend(
            setting, whole, q, theta, options.max_steps if last else EARLY_STEPS,
            options.tolerance if last else max(EARLY_TOLERANCE, options.tolerance),
        )  # fmt: skip
        q, theta = fitted.q, fitted.theta
        misses = _misses(setting, whole, fitted, seen)
        residual = np.linalg.norm(misses, axis=-1)
        if not last and n_cameras:
            follows = 0.0 if moments is None else np.nan_to_num(np.asarray(moments.leverages, np.float64))
            noise = noise if options.noise_px is not None else _Noise.found(seen, residual, follows)
            tau = _correlation(seen, misses) if options.correlated else 1.0
        if tell is not None:
            tell(f"round {number + 1} of {options.rounds}: {int(fitted.steps)} steps, median reprojection "
                 f"{np.nanmedian(np.where(seen.known, residual, np.nan)):.2f} px")  # fmt: skip
    assert fitted is not None
    (setting, whole, fitted), lumbar = _with_lumbar(Solved(setting, whole, fitted), options, tau, tell)
    spread, whole = whole.spread, replace(whole, spread=no_spread(fitted.q))
    result = _result(setting, whole, fitted, seen, noise, tau, _status(fitted, options))
    return replace(result, lumbar=lumbar, spread=spread)


def _with_priors(
    model: SpineModel, n_cameras: int, seen: _Seen, options: FitOptions, terms: Sequence[Term],
    segments: Sequence[Segment] | None,
) -> tuple[Setting, Prior]:  # fmt: skip
    """What is static, and what is known of the shared vector beforehand."""
    layout = make_layout(
        model, n_cameras, symmetric=options.symmetric, biased=options.priors.bias > 0,
        growing=seen.by_one_camera, segments=segments,
    )  # fmt: skip
    prior = make_prior(model, layout, options.priors, options.fixed_markers)
    if options.height_m is not None:
        prior = with_height(model, layout, prior, options.height_m, HEIGHT_STD)
    return Setting(layout, tuple(terms), noise_known=options.noise_px is not None), prior


def _with_lumbar(
    coupled: Solved, options: FitOptions, tau: float, tell: Tell | None
) -> tuple[Solved, LumbarEvidence | None]:
    """The fit gone on with lumbar levels as they are asked for, and the evidence; None for coupled ones."""
    if options.lumbar == "coupled":
        return coupled, None
    found, evidence = released(
        coupled, options.lumbar,
        rhythm_share=options.priors.rhythm, level_std=options.lumbar_std, correlation=tau,
        max_steps=options.max_steps, tolerance=options.tolerance,
    )  # fmt: skip
    if tell is not None:
        tell(f"lumbar levels {options.lumbar}: {int(found.fitted.steps)} steps, {evidence.verdict()}")
    return found, evidence


def _status(fitted: Fitted, options: FitOptions) -> FitStatus:
    if bool(fitted.converged):
        return FitStatus.CONVERGED
    return FitStatus.MAX_STEPS if int(fitted.steps) >= options.max_steps else FitStatus.FAILED


def _check(model: SpineModel, clips: Sequence[Clip], n_cameras: int, rate_hz: float, start: Start) -> None:
    if not clips:
        raise ShapeError("There is no clip to fit; valid is one or more")
    if not (np.isfinite(rate_hz) and rate_hz > 0):
        raise ShapeError(f"rate_hz is {rate_hz}; valid is a finite number above 0")
    if len(start.q) != len(clips):
        raise ShapeError(f"The start has {len(start.q)} clips where there are {len(clips)}")
    for number, (clip, q) in enumerate(zip(clips, start.q, strict=True)):
        if clip.keypoints.shape[1:3] != (n_cameras, model.n_markers):
            raise ShapeError(
                f"Clip {number} has keypoints of shape {clip.keypoints.shape}; valid is "
                f"[T {n_cameras} {model.n_markers} 2], the cameras and the model's markers"
            )
        if q.shape != (len(clip.keypoints), model.n_free):
            raise ShapeError(
                f"The start of clip {number} has shape {q.shape}; "
                f"valid is {(len(clip.keypoints), model.n_free)}"
            )
    if (lifted := sum(clip.lifted is not None for clip in clips)) and n_cameras != 1:
        raise ShapeError(f"{lifted} clips have lifted points and there are {n_cameras} cameras; valid is one")
    if len({clip.lifted.root for clip in clips if clip.lifted is not None}) > 1:
        raise ShapeError("Lifted points of the clips are from different roots; valid is one marker")
    if n_cameras == 0 and all(clip.markers is None for clip in clips):
        raise ShapeError("There are neither cameras nor markers; valid is at least one of them")


def _no_cameras() -> Cameras:
    none = np.zeros((0,))
    return Cameras(
        none.reshape(0, 3, 3), none.reshape(0, 3), none.reshape(0, 2), none.reshape(0, 2), none,
        none.reshape(0, 8), none.reshape(0, 2), (),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Seen:
    """The clips, padded to one length."""

    keypoints: NDArray  # [C T V K 2], 0 where missing
    known: NDArray[np.bool_]  # [C T V K]
    confidence: NDArray  # [C T V K]
    size: NDArray  # [C T V] of the person, px
    markers: NDArray  # [C T K 3]
    has_marker: NDArray[np.bool_]  # [C T K]
    valid: NDArray[np.bool_]  # [C T]
    usable: NDArray[np.bool_]  # [C T]
    lengths: tuple[int, ...]

    @property
    def by_one_camera(self) -> bool:
        """Whether size and distance are left open."""
        together = (self.known.sum(axis=3) >= LEAST_KEYPOINTS).sum(axis=2) >= 2
        seen = self.known.any() and not self.has_marker.any()
        return bool(seen and together.sum() < FEW_TOGETHER * self.usable.sum())

    @classmethod
    def of(cls, clips: Sequence[Clip], n_cameras: int, dtype: jnp.dtype) -> _Seen:
        lengths = tuple(len(c.keypoints) for c in clips)
        longest, n = max(lengths), clips[0].keypoints.shape[2]
        shape = (len(clips), longest)
        keypoints = np.full((*shape, n_cameras, n, 2), np.nan)
        confidence = np.zeros((*shape, n_cameras, n))
        markers = np.full((*shape, n, 3), np.nan)
        known, usable = np.zeros((*shape, n_cameras, n), bool), np.zeros(shape, bool)
        for row, clip in enumerate(clips):
            known[row, : lengths[row]], usable[row, : lengths[row]] = clip.known, clip.usable
            keypoints[row, : lengths[row]] = clip.keypoints
            confidence[row, : lengths[row]] = np.nan_to_num(clip.confidence)
            if clip.markers is not None:
                markers[row, : lengths[row]] = clip.markers
        has_marker: NDArray[np.bool_] = np.asarray(np.isfinite(markers).all(-1))
        return cls(
            np.where(known[..., None], keypoints, 0).astype(dtype), known,
            np.clip(confidence, 0, 1).astype(dtype), _sizes(keypoints, known).astype(dtype),
            np.where(has_marker[..., None], markers, 0).astype(dtype), has_marker,
            # A clip that shows nothing has no poses: nothing would hold them.
            (np.arange(longest) < np.array(lengths)[:, None]) & usable.any(axis=1, keepdims=True),
            usable, lengths,
        )  # fmt: skip


def _sizes(keypoints: NDArray, known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Root of the area of the box round each person's keypoints, px; the view's median where it is not known,
    and that of all views where it never is.

    A tenth of the keypoints on either side is left out, for some of them are astray.
    """
    if not known.size:
        return np.ones(known.shape[:3])
    holed = np.where(known[..., None], keypoints, np.nan)
    few = known.sum(-1) < LEAST_KEYPOINTS
    holed = np.where(few[..., None, None], 0.0, holed)
    low, high = np.nanpercentile(holed, [10, 90], axis=3)
    size = np.sqrt(np.prod(np.maximum(high - low, 1.0), axis=-1))
    size = np.where(few, np.nan, size)
    seen = np.isfinite(size).any(axis=(0, 1))
    others = np.nanmedian(size) if seen.any() else 1.0
    middle = np.where(seen, np.nanmedian(np.where(seen, size, 1.0), axis=(0, 1)), others)
    return np.where(np.isfinite(size), size, middle)


@dataclass(frozen=True, eq=False)
class _Noise:
    """Deviation of keypoints as a share of the person's size, ``[V K]``."""

    share: NDArray[np.float64]

    @classmethod
    def first(cls, seen: _Seen, options: FitOptions) -> _Noise:
        views, keypoints = seen.known.shape[2:]
        if options.noise_px is None:
            return cls(np.full((views, keypoints), FIRST_NOISE))
        return cls(options.noise_px / np.median(seen.size, axis=(0, 1))[:, None] * np.ones(keypoints))

    @classmethod
    def found(cls, seen: _Seen, residual: NDArray, follows: NDArray | float) -> _Noise:
        """From the medians of what remains, drawn to the view's where there is little of it.

        Args:
            seen: the clips.
            residual: ``[C T V K]`` px.
            follows: share of the errors' variance ``[V K]`` that poses follow, which doesn't remain.
        """
        share = residual * seen.confidence / seen.size[..., None]
        share = share / np.sqrt(1 - np.clip(follows, 0.0, MOST_FOLLOWED))
        share = np.where(seen.known, share, np.nan)
        counts = seen.known.sum(axis=(0, 1))
        views = np.array(
            [np.nanmedian(v) if np.isfinite(v).any() else np.nan for v in np.moveaxis(share, 2, 0)]
        )
        whole = np.nanmedian(share)
        views = np.where(np.isfinite(views), views, whole)[:, None]
        own = np.full(counts.shape, np.nan)
        for v, k in np.argwhere(counts > 0):
            own[v, k] = np.nanmedian(share[:, :, v, k])
        few = 10.0
        trusted = counts / (counts + few)
        log = trusted * np.log(np.where(counts > 0, np.maximum(own, 1e-12), 1)) + (1 - trusted) * np.log(
            np.maximum(views, 1e-12)
        )
        return cls(np.exp(log) / RAYLEIGH_MEDIAN)


def _correlation(seen: _Seen, misses: NDArray) -> float:
    """Frames over which errors are alike: (1 + r) / (1 - r) by the correlation r of neighbours in time.

    The errors' directions count, not their lengths alone: a keypoint that is hidden for a while errs more in
    all of its frames, but not the same way.
    """
    both = seen.known[:, 1:] & seen.known[:, :-1]
    share = misses * (seen.confidence / np.maximum(seen.size[..., None], 1e-9))[..., None]
    found = []
    for v, k in np.argwhere(both.sum(axis=(0, 1)) >= 20):
        here = both[:, :, v, k]
        a, b = share[:, 1:, v, k][here], share[:, :-1, v, k][here]
        limit = 4 * np.median(np.abs(np.concatenate([a, b])))
        a, b = (np.clip(x, -limit, limit) for x in (a, b))
        if limit > 0:
            found.append(np.sum(a * b) / np.sqrt(np.sum(a**2) * np.sum(b**2)))
    if not found:
        return 1.0
    r = float(np.clip(np.median(found), 0.0, 0.99))
    return float(min((1 + r) / (1 - r), LONGEST))


def _whole(
    model: SpineModel, prior: Prior, rig: Rig, seen: _Seen, options: FitOptions, rate_hz: float
) -> Whole:
    dtype = model.dtype
    inner = np.ones(model.n_free)
    if model.root is not None:
        inner[_root_columns(model)] = 0.0
    pull = seen.usable / np.maximum(seen.usable.sum(axis=1, keepdims=True), 1)
    # The markers of padded frames are 0 and count for nothing.
    data = FrameData(
        jnp.asarray(seen.keypoints), jnp.zeros(seen.known.shape, dtype), jnp.asarray(seen.size),
        jnp.zeros(seen.keypoints.shape, dtype),
        jnp.asarray(seen.markers), jnp.asarray(seen.has_marker / options.marker_std_m**2, dtype),
        jnp.asarray(seen.usable), jnp.asarray(pull, dtype),
    )  # fmt: skip
    return Whole(
        data,
        Fixed(model, rig, jnp.asarray(inner / options.pose_std**2, dtype)),
        jnp.asarray(prior.precision, dtype),
        jnp.asarray(prior.mean, dtype),
        jnp.asarray(prior.free, dtype),
        jnp.broadcast_to(
            jnp.asarray(1 / _acceleration_std(model, options, alone=seen.by_one_camera) ** 2, dtype),
            (len(seen.lengths), model.n_free),
        ),
        jnp.asarray(1 / options.velocity_std**2, dtype),
        jnp.asarray(seen.valid),
        jnp.asarray(rate_hz, dtype),
        no_spread(jnp.zeros((*seen.valid.shape, model.n_free), dtype)),
    )


def _lifted_data(clips: Sequence[Clip], seen: _Seen, size: float, dtype: jnp.dtype) -> LiftedData | None:
    """Lifted points of a body of the generic model's size; those that are given are ``size`` times as far."""
    root = next((clip.lifted.root for clip in clips if clip.lifted is not None), None)
    if root is None:
        return None
    points = np.full(seen.markers.shape, np.nan)
    precision = np.zeros(seen.markers.shape)
    share, size_precision = np.zeros(seen.valid.shape), np.zeros(seen.valid.shape)
    for row, clip in enumerate(clips):
        if (lifted := clip.lifted) is not None:
            n = seen.lengths[row]
            points[row, :n] = lifted.points / size
            there = np.isfinite(lifted.points).all(-1) & (np.arange(len(lifted.std)) != root)
            std = np.where(lifted.std > 0, lifted.std, 1.0) / size
            precision[row, :n] = there[..., None] / std**2
            counts = there.any(-1) & seen.usable[row, :n]
            alike = np.clip(lifted.alike_frames, 1.0, max(counts.sum(), 1))
            share[row, :n] = 1 / (alike * max(lifted.alike_markers, 1.0))
            size_precision[row, :n] = counts / lifted.size_std**2
    size_precision /= max(np.count_nonzero(size_precision), 1)
    points, precision, share, log_size, size_precision = (
        jnp.asarray(x, dtype)
        for x in (
            np.where(precision > 0, points, 0.0), precision, share,
            np.full(share.shape, np.log(size)), size_precision,
        )
    )  # fmt: skip
    return LiftedData(points, precision, share, log_size, size_precision, root)


def _acceleration_std(model: SpineModel, options: FitOptions, *, alone: bool) -> NDArray[np.float64]:
    """[Q] of each free coordinate; ``alone`` says that one camera sees the subject."""
    std = np.full(model.n_free, options.acceleration_std)
    if alone:
        std[_root_slides(model)] = ALONE_ACCELERATION_STD
    return std


def _with_moments(whole: Whole, moments: Moments, options: FitOptions, *, alone: bool) -> Whole:
    """Poses spread, and how fast each coordinate changes; but for the body's place seen by one camera."""
    if not all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(moments)):
        return whole  # no factor, as far from where a fit ends: the next round has another
    if options.marginal:
        whole = replace(whole, spread=moments.spread)
    if not options.adaptive:
        return whole
    found = 1 / moments.acceleration_variances
    if alone:
        slides = _root_slides(whole.fixed.model)
        found = found.at[:, slides].set(whole.acceleration_precision[:, slides])
    return replace(whole, acceleration_precision=found)


def _root_slides(model: SpineModel) -> NDArray[np.int64]:
    """Free coordinates that shift the whole body."""
    names = model.coordinate_names
    turning = [model.rotational[names.index(name)] for name in model.free_names]
    columns = _root_columns(model) if model.root is not None else np.zeros(0, int)
    return np.array([c for c in columns if not turning[c]], int)


def _root_columns(model: SpineModel) -> NDArray[np.int64]:
    """Free coordinates of the joint that moves the whole body."""
    children = [i for i, parent in enumerate(model.topology.parents) if parent == 0 and i > 0]
    joints = [j for j, body in enumerate(model.topology.joint_bodies) if body in children]
    moved = np.abs(model.coordinate_map.qpos_matrix[joints]).sum(axis=0) > 0
    return np.flatnonzero(moved)


def _first(model: SpineModel, layout: Layout, prior: Prior, seen: _Seen, start: Start) -> tuple[Array, Array]:
    longest = seen.valid.shape[1]
    q = np.tile(np.asarray(model.default_q, np.float64), (len(seen.lengths), longest, 1))
    root = () if model.root is None else tuple(_root_columns(model))
    for row, given in enumerate(start.q):
        poses = settled(model, given, except_for=root)
        there = np.flatnonzero(np.isfinite(poses).all(axis=1))
        if len(there):
            frames = np.clip(np.arange(longest), 0, len(poses) - 1)
            near = there[np.abs(frames[:, None] - there).argmin(axis=1)]
            q[row] = poses[near]
    theta = np.zeros(layout.size)
    if start.scale_factors is not None:
        logs = np.log(np.asarray(start.scale_factors, np.float64))
        for number in range(len(layout.segments)):
            theta[3 * number : 3 * number + 3] = logs[np.array(layout.body_segment) == number].mean(axis=0)
    return jnp.asarray(q, model.dtype), jnp.asarray(theta * prior.free, model.dtype)


def _with_noise(whole: Whole, seen: _Seen, noise: _Noise, tau: float) -> Whole:
    spread = noise.share * seen.size[..., None] / np.maximum(seen.confidence, 1e-3)
    precision = np.where(seen.known, 1 / np.maximum(spread, LEAST_NOISE_PX) ** 2, 0.0) / tau
    data = replace(whole.data, precision=jnp.asarray(precision, whole.data.precision.dtype))
    return replace(whole, data=data)


def _with_velocity(setting: Setting, whole: Whole, q: Array, theta: Array, seen: _Seen) -> Whole:
    """Velocities of the predicted keypoints, where clocks are fitted."""
    if not setting.layout.n_cameras or not bool(whole.free[setting.layout.n_body + PER_CAMERA - 1]):
        return whole
    pixels = _pixels(setting, whole.fixed, theta, q)
    ends = np.clip(np.arange(q.shape[1]) + 1, 0, None), np.clip(np.arange(q.shape[1]) - 1, 0, None)
    last = np.array(seen.lengths)[:, None] - 1
    after, before = (np.minimum(e[None], last) for e in ends)
    rows = np.arange(len(q))[:, None]
    steps = np.maximum(after - before, 1)[..., None, None, None]
    velocity = (pixels[rows, after] - pixels[rows, before]) / steps * whole.rate_hz
    return replace(whole, data=replace(whole.data, velocity=velocity))


_markers = jax.jit(markers_of, static_argnums=0)


@partial(jax.jit, static_argnums=0)
def _pixels(setting: Setting, fixed: Fixed, theta: Array, q: Float[Array, "C T Q"]) -> Array:
    markers = markers_of(setting, fixed.model, theta, q.reshape(-1, q.shape[-1]))
    seen = look(moved_rig(fixed.rig, setting.layout.camera_part(theta)), markers)
    return seen.pixels.reshape(*q.shape[:2], *seen.pixels.shape[1:])


_expected = jax.jit(all_expected, static_argnums=0)


def _misses(setting: Setting, whole: Whole, fitted: Fitted, seen: _Seen) -> NDArray[np.float64]:
    """From keypoints to where they are expected, px ``[C T V K 2]``; 0 where there is no keypoint."""
    if not setting.layout.n_cameras:
        return np.zeros((*seen.known.shape, 2))
    off = np.asarray(
        _expected(setting, whole.fixed, fitted.theta, whole.data, fitted.q) - whole.data.keypoints, np.float64
    )
    return np.where(seen.known[..., None], off, 0.0)


def _result(
    setting: Setting, whole: Whole, fitted: Fitted, seen: _Seen, noise: _Noise | None, tau: float,
    status: FitStatus,
) -> SubjectFit:  # fmt: skip
    layout, theta = setting.layout, fitted.theta
    there = seen.valid[..., None] & (status != FitStatus.TOO_LITTLE_DATA)
    markers = _markers(setting, whole.fixed.model, theta, fitted.q.reshape(-1, fitted.q.shape[-1]))
    markers = np.asarray(markers, np.float64).reshape(*fitted.q.shape[:2], -1, 3)
    cameras = None
    if layout.n_cameras:
        cameras = jax.tree.map(
            lambda leaf: np.asarray(leaf, np.float64),
            cameras_of(moved_rig(whole.fixed.rig, layout.camera_part(theta))),
        )
    residual = np.linalg.norm(_misses(setting, whole, fitted, seen), axis=-1)
    spread = np.full(seen.known.shape[2:], np.nan)
    if noise is not None and layout.n_cameras:
        spread = noise.share * np.median(seen.size, axis=(0, 1))[:, None]
    return SubjectFit(
        np.where(there, np.asarray(fitted.q, np.float64), np.nan),
        np.where(there[..., None], markers, np.nan),
        np.asarray(layout.scale_factors(theta), np.float64),
        np.asarray(layout.marker_offsets(theta), np.float64),
        cameras,
        np.asarray(layout.delays(theta), np.float64),
        spread,
        tau,
        np.where(seen.known & there[..., None], residual, np.nan),
        float(fitted.objective),
        status,
        int(fitted.steps),
        seen.lengths,
        theta,
        setting,
        whole,
    )
