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


def make_detector_optimiser(run: DetectorRun) -> optax.GradientTransformation:
    """The run's optimiser, clipped and with smaller steps in early layers where asked for."""
    options = run.optimiser
    parts = [] if options.clip is None else [optax.clip_by_global_norm(options.clip)]
    rate = detector_rate(options, run.steps)
    parts.append(optax.adamw(rate, weight_decay=options.weight_decay, mask=_decayed))
    if options.layer_decay is not None and isinstance(run.model, ViTPoseOptions):
        parts.append(scaled_by_layer(options.layer_decay, run.model.layers))
    return optax.chain(*parts)


def _decayed(params: nnx.State) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def scaled_by_layer(decay: float, layers: int) -> optax.GradientTransformation:
    """Updates times ``decay`` for each layer between theirs and the transformer's end.

    Source: MMPose's LayerDecayOptimWrapperConstructor: patches and places count as the layer before the
    first, all that follows the last layer has the whole rate.

    Args:
        decay: of the rate from a layer to the one before it.
        layers: of the transformer.
    """

    def scaled(updates: Any, params: Any) -> Any:
        del params
        return jax.tree_util.tree_map_with_path(
            lambda path, update: update * decay ** _layers_after(path, layers), updates
        )

    return optax.stateless(scaled)


def _layers_after(path: tuple[Any, ...], layers: int) -> int:
    """Of a transformer's weight, by the keys that lead to it; 0 beyond the last layer."""
    keys = [str(getattr(entry, "key", getattr(entry, "name", ""))) for entry in path]
    if keys[0] in ("patches", "place"):
        return layers + 1
    return layers - int(keys[1]) if keys[0] == "layers" else 0


def initial_detector_state(
    model: DetectorModule, run: DetectorRun
) -> tuple[nnx.GraphDef[DetectorModule], TrainState]:
    """The state before the first step, and the model's structure."""
    structure, params, rest = nnx.split(model, nnx.Param, ...)
    optimiser = make_detector_optimiser(run).init(params)
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
        updates, inner = optimiser.update(gradients, state.optimiser, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        after = TrainState(
            state.step + 1,
            params,
            rest,
            inner,
            averaged(state.step, state.average, params, run.average),
            averaged(state.step, state.average_rest, rest, run.average),
        )
        return after, {"loss": loss, "gradient_norm": optax.tree.norm(gradients)}

    return jax.jit(step, donate_argnums=0, out_shardings=replicated(mesh))


def _seen(crops: Float[Array, "B h w 3"], pixels: PixelOptions) -> Float[Array, "B h w 3"]:
    """Crops that are normalised as for ImageNet as the run's detector takes them."""
    if pixels == PixelOptions():
        return crops
    mean, deviation = (jnp.asarray(x, jnp.float32) for x in (IMAGENET_MEAN, IMAGENET_STD))
    return pixels.normalise(crops * deviation + mean)
