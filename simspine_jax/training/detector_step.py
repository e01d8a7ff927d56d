"""One step of a detector's training: loss, learning rate and optimiser as published."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from simspine_jax.arrays import Array, Bool, Float
from simspine_jax.detection.codecs import SimCC
from simspine_jax.detection.models import DetectorModule, PixelOptions, codec_of
from simspine_jax.detection.photometric import IMAGENET_MEAN, IMAGENET_STD
from simspine_jax.detection.vitpose import ViTPoseOptions
from simspine_jax.training.detector_run import DetectorOptimiser, DetectorRun
from simspine_jax.training.state import DROP, TrainState, averaged, replicated

PEOPLE = 256
"""Over so many people RTMPose's loss is summed, those of a device of its published training."""

DetectorStep = Callable[[TrainState, Array, Array, Array], tuple[TrainState, dict[str, Array]]]


def detector_rate(options: DetectorOptimiser, steps: int) -> optax.Schedule:
    """The learning rate of each step; warming up multiplies what the schedule says, as in MMEngine."""
    if options.schedule == "cosine":
        flat = round(options.begin * steps)
        fall = optax.cosine_decay_schedule(options.learning_rate, max(steps - flat, 1), alpha=options.final)
        schedule = optax.join_schedules([optax.constant_schedule(options.learning_rate), fall], [flat])
    else:
        drops = {round(share * steps): DROP for share in options.drops}
        schedule = optax.piecewise_constant_schedule(options.learning_rate, drops)
    if not options.warmup:
        return schedule
    rising = optax.linear_schedule(options.warmup_from, 1.0, options.warmup)
    return lambda step: rising(step) * schedule(step)


Groups = dict[str, Array]
"""Weights of one rule in a row each. XLA compiles a loop for each array that an optimiser changes, which for
the hundreds of a detector takes minutes; of groups there are few."""

MATRICES, VECTORS = "matrices", "vectors"


def make_detector_optimiser(run: DetectorRun) -> optax.GradientTransformation:
    """The run's optimiser on `grouped` weights: clipped, and early layers with smaller steps if asked for."""
    options = run.optimiser
    parts = [] if options.clip is None else [optax.clip_by_global_norm(options.clip)]
    rate = detector_rate(options, run.steps)
    parts.append(optax.adamw(rate, weight_decay=options.weight_decay, mask=_decayed))
    if options.layer_decay is not None:
        parts.append(scaled_by_layer(options.layer_decay))
    return optax.chain(*parts)


def _decayed(groups: Groups) -> dict[str, bool]:
    return {name: name.startswith(MATRICES) for name in groups}


def scaled_by_layer(decay: float) -> optax.GradientTransformation:
    """Updates of `grouped` weights times ``decay`` for each layer between theirs and the transformer's end.

    Source: MMPose's LayerDecayOptimWrapperConstructor: patches and places count as the layer before the
    first, all that follows the last layer has the whole rate.
    """

    def scaled(updates: Groups, params: Groups | None) -> Groups:
        del params
        return {name: update * decay ** int(name.split("_")[1]) for name, update in updates.items()}

    return optax.stateless(scaled)  # type: ignore[arg-type]


def grouped(params: nnx.State, run: DetectorRun) -> Groups:
    """Weights by what becomes of them: ``matrices_3`` decay and lie three layers before the last one's end.

    Args:
        params: of the run's detector.
        run: says whether layers matter.
    """
    parts: dict[str, list[Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        parts.setdefault(_group_of(path, leaf, run), []).append(leaf.reshape(-1))
    return {name: jnp.concatenate(leaves) for name, leaves in parts.items()}


def ungrouped(groups: Groups, like: nnx.State, run: DetectorRun) -> Any:
    """Weights of `grouped` in their own shapes again, those of ``like``."""
    place = dict.fromkeys(groups, 0)

    def own(path: tuple[Any, ...], leaf: Array) -> Array:
        name = _group_of(path, leaf, run)
        first = place[name]
        place[name] = first + leaf.size
        return groups[name][first : place[name]].reshape(leaf.shape)

    return jax.tree_util.tree_map_with_path(own, like)


def _group_of(path: tuple[Any, ...], leaf: Array, run: DetectorRun) -> str:
    # Places are a table and no map: as in MMPose's layer decay they don't decay.
    kind = MATRICES if leaf.ndim > 1 and _keys(path)[0] != "place" else VECTORS
    if run.optimiser.layer_decay is None or not isinstance(run.model, ViTPoseOptions):
        return f"{kind}_0"
    return f"{kind}_{_layers_after(path, run.model.layers)}"


def _layers_after(path: tuple[Any, ...], layers: int) -> int:
    """Of a transformer's weight, by the keys that lead to it; 0 beyond the last layer."""
    keys = _keys(path)
    if keys[0] in ("patches", "place"):
        return layers + 1
    return layers - int(keys[1]) if keys[0] == "layers" else 0


def _keys(path: tuple[Any, ...]) -> list[str]:
    return [str(getattr(entry, "key", getattr(entry, "name", ""))) for entry in path]


def initial_detector_state(
    model: DetectorModule, run: DetectorRun
) -> tuple[nnx.GraphDef[DetectorModule], TrainState]:
    """The state before the first step, and the model's structure."""
    structure, params, rest = nnx.split(model, nnx.Param, ...)
    optimiser = make_detector_optimiser(run).init(grouped(params, run))  # type: ignore[arg-type]
    copies = (None, None) if run.average is None else jax.tree.map(jnp.copy, (params, rest))
    return structure, TrainState(jnp.zeros((), jnp.int32), params, rest, optimiser, *copies)


def make_detector_step(structure: nnx.GraphDef[DetectorModule], run: DetectorRun, mesh: Mesh) -> DetectorStep:
    """The compiled step; it takes the memory of the state that it is given.

    It takes crops ``[B h w 3]`` as `photometric.augment` gives them, keypoints ``[B K 2]`` in px of the crop
    and which of them are labelled ``[B K]``. What is drawn follows from the seed and the step's number.
    """
    codec, optimiser = codec_of(run.model), make_detector_optimiser(run)
    # RTMPose's loss is a sum over people: as if of `PEOPLE` in all batches, its gradients are clipped alike.
    weight = PEOPLE / run.batch_size if isinstance(codec, SimCC) else 1.0

    def step(
        state: TrainState,
        crops: Float[Array, "B h w 3"],
        keypoints: Float[Array, "B K 2"],
        labelled: Bool[Array, "B K"],
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(run.seed), state.step)
        seen, target = _seen(crops, run.pixels), codec.encode(keypoints, labelled)

        def loss_of(params: nnx.State):
            model = nnx.merge(structure, params, state.rest, copy=True)
            loss = weight * codec.loss(model(seen, key=key), target)
            return loss, nnx.split(model, nnx.Param, ...)[2]

        (loss, rest), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        before, slopes = grouped(state.params, run), grouped(gradients, run)
        updates, inner = optimiser.update(slopes, state.optimiser, before)  # type: ignore[arg-type]
        after: Any = optax.apply_updates(before, updates)
        averages = (
            _averaged(state.step, state.average, after, run),
            _averaged(state.step, state.average_rest, grouped(rest, run), run),
        )
        params = ungrouped(after, state.params, run)
        told = {"loss": loss, "gradient_norm": optax.tree.norm(slopes)}
        return TrainState(state.step + 1, params, rest, inner, *averages), told

    return jax.jit(step, donate_argnums=0, out_shardings=replicated(mesh))


def _averaged(step: Array, average: nnx.State | None, now: Groups, run: DetectorRun) -> nnx.State | None:
    """The average of weights or statistics after a step."""
    if average is None:
        return None
    groups: Any = averaged(step, grouped(average, run), now, run.average)  # type: ignore[arg-type]
    return ungrouped(groups, average, run)


def _seen(crops: Float[Array, "B h w 3"], pixels: PixelOptions) -> Float[Array, "B h w 3"]:
    """Crops that are normalised as for ImageNet as the run's detector takes them."""
    if pixels == PixelOptions():
        return crops
    mean, deviation = (jnp.asarray(x, jnp.float32) for x in (IMAGENET_MEAN, IMAGENET_STD))
    return pixels.normalise(crops * deviation + mean)
