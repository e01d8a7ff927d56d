"""What changes in a training, and one step of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from simspine_jax.arrays import Array, Int
from simspine_jax.datasets.batches import BatchState, shuffled
from simspine_jax.errors import ShapeError
from simspine_jax.training.data import Rows
from simspine_jax.training.models import LifterModule
from simspine_jax.training.run import OptimiserOptions, Run

DATA_AXIS = "data"
DROP = 0.1
"""What the learning rate is multiplied by at each drop of the schedule ``steps``."""

Model = TypeVar("Model", bound=nnx.Module)

Step = Callable[["TrainState", Rows], tuple["TrainState", dict[str, Array]]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class TrainState:
    """All that a step reads and writes, but for the data; the step's number is also its place in them.

    Attributes:
        step: steps done.
        params: trained weights.
        rest: statistics of batches and of the data.
        optimiser: of optax.
        average: of the weights over steps; None where there is none.
        average_rest: of the statistics over steps; None where the last ones are used.
    """

    step: Int[Array, ""]
    params: nnx.State
    rest: nnx.State
    optimiser: Any
    average: nnx.State | None
    average_rest: nnx.State | None = None

    @property
    def evaluated(self) -> nnx.State:
        """The weights to use: the average where there is one."""
        return self.params if self.average is None else self.average

    @property
    def evaluated_rest(self) -> nnx.State:
        """The statistics to use with them."""
        return self.rest if self.average_rest is None else self.average_rest


def make_optimiser(options: OptimiserOptions, steps: int) -> optax.GradientTransformation:
    """AdamW with the run's learning rate, clipped where asked for."""
    adam = optax.adamw(learning_rate(options, steps), weight_decay=options.weight_decay, mask=_decayed)
    return adam if options.clip is None else optax.chain(optax.clip_by_global_norm(options.clip), adam)


def _decayed(params: nnx.State) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def learning_rate(options: OptimiserOptions, steps: int) -> optax.Schedule:
    """The learning rate of each step."""
    main, warm = max(steps - options.warmup, 1), options.warmup
    if options.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(options.learning_rate, main, alpha=options.final)
    else:
        drops = {round(share * steps) - warm: DROP for share in options.drops}
        schedule = optax.piecewise_constant_schedule(options.learning_rate, drops)
    if not warm:
        return schedule
    rising = optax.linear_schedule(0.0, options.learning_rate, warm)
    return optax.join_schedules([rising, schedule], [warm])


def initial_state(model: LifterModule, run: Run) -> tuple[nnx.GraphDef[LifterModule], TrainState]:
    """The state before the first step, and the model's structure."""
    structure, params, rest = nnx.split(model, nnx.Param, ...)
    optimiser = make_optimiser(run.optimiser, run.steps).init(params)
    average = None if run.average is None else jax.tree.map(jnp.copy, params)
    return structure, TrainState(jnp.zeros((), jnp.int32), params, rest, optimiser, average)


def data_mesh() -> Mesh:
    """All devices in a row, over which batches are shared out."""
    return Mesh(np.array(jax.devices()), (DATA_AXIS,))


def make_step(structure: nnx.GraphDef[LifterModule], run: Run, rows: Rows, mesh: Mesh) -> Step:
    """The compiled step. It takes the memory of the state that it is given.

    Batch and dropout follow from the seed and the step's number alone. The batch is computed on by all
    devices of the mesh, each its share; weights and data are on each of them.

    Raises:
        ShapeError: there is no whole batch, or it can't be shared out evenly.
    """
    count = len(rows)
    check_batch(run.batch_size, count, mesh)
    optimiser = make_optimiser(run.optimiser, run.steps)
    shared = NamedSharding(mesh, PartitionSpec(DATA_AXIS))
    whole = replicated(mesh)

    def step(state: TrainState, rows: Rows) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(run.seed), state.step)
        batch = jax.lax.with_sharding_constraint(rows.take(places(state.step, run, count)), shared)

        def loss_of(params: nnx.State):
            model = nnx.merge(structure, params, state.rest, copy=True)
            loss, parts = model.loss(*batch, key=key)
            return loss, (parts, nnx.split(model, nnx.Param, ...)[2])

        (loss, (parts, rest)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, inner = optimiser.update(gradients, state.optimiser, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        average = averaged(state.step, state.average, params, run.average)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(gradients), **parts}
        return TrainState(state.step + 1, params, rest, inner, average), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=whole)


def replicated(mesh: Mesh) -> NamedSharding:
    """On all devices of the mesh, whole."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(batch_size: int, count: int, mesh: Mesh) -> None:
    """Refuses batches that are larger than the set or can't be shared out evenly.

    Raises:
        ShapeError: they are.
    """
    n_devices = mesh.devices.size
    if batch_size > count or batch_size % n_devices:
        raise ShapeError(
            f"Batches of {batch_size} can't be made of {count} samples on {n_devices} devices; valid are "
            f"multiples of {n_devices} up to {count}"
        )


def places(step: Int[Array, ""], run: Run, count: int) -> Int[Array, " B"]:
    """Numbers of the samples of a step's batch; incomplete batches at the end of an epoch are left out."""
    batches = count // run.batch_size
    epoch, position = step // batches, step % batches
    order = position * run.batch_size + jnp.arange(run.batch_size, dtype=jnp.int32)
    return shuffled(order, count, run.seed, epoch)  # type: ignore[arg-type]


def data_state(step: int, run: Run, count: int) -> BatchState:
    """Where the data are after so many steps, as checkpoints tell it."""
    epoch, position = divmod(step, count // run.batch_size)
    return BatchState(run.seed, epoch, position, count, run.batch_size)


def averaged(step: Int[Array, ""], average: Any, values: Any, keep: float | None) -> Any:
    """The average after a step; it begins with short ones, or the first values would stay in it for long.

    Args:
        step: steps done before.
        average: a tree, before it.
        values: likewise, after it.
        keep: share of the average that is kept; None for no average.
    """
    if keep is None:
        return None
    done = step.astype(jnp.float32)
    share = jnp.minimum(keep, (1.0 + done) / (10.0 + done))
    return jax.tree.map(lambda a, p: share * a + (1 - share) * p, average, values)


def assembled(structure: nnx.GraphDef[Model], state: TrainState) -> Model:
    """The model as it is to be used."""
    return nnx.merge(structure, state.evaluated, state.evaluated_rest, copy=True)
