"""Batches of samples in a shuffled order known at each place, so that a training can resume anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from simspine_jax.arrays import Array, Int
from simspine_jax.datasets.samples import Frames, Samples
from simspine_jax.errors import ShapeError

ROUNDS = 8
"""Of the Feistel network; four suffice where the round function is perfect (M. Luby and C. Rackoff, 1988)."""

STEPS_OF_A_WALK = 3
"""Steps between looks at whether all numbers have come back; more than half do at each."""

MAX_SEED = 2**32 - 1
"""The largest seed."""

# Multiples of 2^32 over the golden ratio, which share no bits to speak of.
_STEPS = tuple(np.uint32(0x9E3779B9 * (r + 1) % 2**32) for r in range(ROUNDS))


@dataclass(frozen=True)
class BatchState:
    """Where a training is in its data: the next batch. `dataclasses.asdict` makes it JSON.

    Attributes:
        seed: of the order.
        epoch: from 0.
        position: batches given of this epoch.
        count: samples of the set.
        batch_size: samples of a batch.
    """

    seed: int
    epoch: int
    position: int
    count: int
    batch_size: int


def shuffled(index: Int[Array, "*batch"], count: int, seed: int, epoch: int) -> Int[Array, "*batch"]:
    """Where a permutation of ``count`` numbers takes ``index``; another one for each seed and epoch.

    Nothing of the size of ``count`` is made, and all devices and releases give the same numbers. The
    permutation is a Feistel network of `ROUNDS` rounds over the next power of two, walked until it comes back
    below ``count`` (J. Black and P. Rogaway, Ciphers with arbitrary finite domains, 2002); its round function
    is the last step of MurmurHash3.

    Args:
        index: from 0 and below ``count``.
        count: 1 to 2^31.
        seed: 0 to `MAX_SEED`.
        epoch: likewise.
    """
    bits = max(2, (count - 1).bit_length())
    low = bits // 2
    masks = jnp.uint32(2**low - 1), jnp.uint32(2 ** (bits - low) - 1)
    words = jnp.asarray(seed, jnp.uint32), jnp.asarray(epoch, jnp.uint32)
    keys = [_mixed(_mixed(words[0] + step) ^ words[1]) for step in _STEPS]

    def once(value: Array) -> Array:
        right, left = value & masks[0], value >> low
        for r, key in enumerate(keys):
            if r % 2:
                right = (right ^ _mixed(left ^ key)) & masks[0]
            else:
                left = (left ^ _mixed(right ^ key)) & masks[1]
        return left << low | right

    def walk(value: Array) -> Array:
        for _ in range(STEPS_OF_A_WALK):  # several at a time, for a turn of the loop costs more than a step
            value = jnp.where(value < count, value, once(value))
        return value

    start = once(jnp.asarray(index, jnp.uint32))
    return jax.lax.while_loop(lambda value: (value >= count).any(), walk, start).astype(jnp.int32)


def _mixed(word: Array) -> Array:
    """MurmurHash3's finaliser of 32 bits."""
    word = (word ^ (word >> 16)) * np.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * np.uint32(0xC2B2AE35)
    return word ^ (word >> 16)


class Batches:
    """Batches of samples, epoch after epoch; iterating gives the rest of the epoch that `state` is in.

    The samples are copied to the device once, and a batch is one compiled gather there. With
    ``on_device=False``, for sets that don't fit, they stay in the host's memory (or in a mapped file) and a
    thread prepares the next batch while one is used; the batches are the same. ``samples`` are the ones kept.

    Args:
        samples: of `frame_samples` or `window_samples`.
        batch_size: samples of a batch.
        seed: of the order, 0 to `MAX_SEED`; each epoch has an order of its own.
        shuffle: False for the samples' own order.
        drop_last: whether an incomplete last batch is left out; else it is filled up with masked frames,
            whose ``valid`` is False.
        sharding: of the batches' first dimension over devices, such as
            ``NamedSharding(mesh, PartitionSpec("data"))``; the samples are on each of them. None for one.
        on_device: whether the samples are kept on the device.

    Raises:
        ShapeError: a batch is larger than the set or can't be shared out evenly, or the seed is too large.
    """

    def __init__(
        self,
        samples: Samples,
        batch_size: int,
        seed: int = 0,
        *,
        shuffle: bool = True,
        drop_last: bool = True,
        sharding: NamedSharding | None = None,
        on_device: bool = True,
    ) -> None:
        count = len(samples)
        if not 1 <= batch_size <= count:
            raise ShapeError(
                f"Batches of {batch_size} of {count} samples can't be made; valid is 1 to {count}"
            )
        if not 0 <= seed <= MAX_SEED:
            raise ShapeError(f"The seed of the batches is {seed}; valid is 0 to {MAX_SEED}")
        _check_shares(batch_size, sharding)
        self._length = count // batch_size if drop_last else -(-count // batch_size)
        self._sharding, self._on_device = sharding, on_device
        whole = None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec())
        self.samples = jax.device_put(samples, whole) if on_device else jax.tree.map(np.asarray, samples)
        order = partial(_places, count=count, batch_size=batch_size, shuffle=shuffle)
        self._places = jax.jit(order)
        self._gather = jax.jit(partial(_gather, order, whole), out_shardings=sharding)
        self.state = BatchState(seed, 0, 0, count, batch_size)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._length

    def __iter__(self) -> Iterator[Frames]:
        if self._on_device:
            yield from self._on_this_thread()
        else:
            yield from self._prepared()

    def at(self, epoch: int, position: int) -> Frames:
        """One batch: number ``position`` of an epoch; `state` stays as it is."""
        place = np.uint32(self.state.seed), np.uint32(epoch), np.int32(position)
        if self._on_device:
            return self._gather(self.samples, *place)
        index, valid = map(np.asarray, self._places(*place))
        frames = self.samples.take(index)
        return jax.device_put(frames.within(_beside(valid, frames.valid)), self._sharding)

    def restore(self, state: BatchState) -> None:
        """Goes on where ``state`` was taken.

        Raises:
            ShapeError: it belongs to other samples or batches of another size.
        """
        own = replace(self.state, seed=state.seed, epoch=state.epoch, position=state.position)
        if state != own or not (state.epoch >= 0 and 0 <= state.position < self._length):
            raise ShapeError(
                f"The data's state {asdict(state)} is not of these batches; valid is one of "
                f"{own.count} samples in {self._length} batches of {own.batch_size}"
            )
        self.state = state

    def _advance(self) -> None:
        epoch, position = self.state.epoch, self.state.position + 1
        if position == self._length:
            epoch, position = epoch + 1, 0
        self.state = replace(self.state, epoch=epoch, position=position)

    def _on_this_thread(self) -> Iterator[Frames]:
        for position in range(self.state.position, self._length):
            batch = self.at(self.state.epoch, position)
            # Before the batch is handed out: who saves the state while using it wants the next one.
            self._advance()
            yield batch

    def _prepared(self) -> Iterator[Frames]:
        epoch, first = self.state.epoch, self.state.position
        with ThreadPoolExecutor(1) as pool:
            ready = pool.submit(self.at, epoch, first)
            for position in range(first, self._length):
                batch = ready.result()
                if position + 1 < self._length:
                    ready = pool.submit(self.at, epoch, position + 1)
                self._advance()
                yield batch


def _check_shares(batch_size: int, sharding: NamedSharding | None) -> None:
    if sharding is None:
        return
    axis = sharding.spec[0] if sharding.spec else None
    axes = () if axis is None else (axis,) if isinstance(axis, str) else tuple(axis)
    shares = int(np.prod([sharding.mesh.shape[name] for name in axes], initial=1))
    if batch_size % shares:
        raise ShapeError(
            f"A batch of {batch_size} can't be shared out over {shares} devices; "
            f"valid are multiples of {shares}"
        )


def _places(
    seed: Array, epoch: Array, position: Array, *, count: int, batch_size: int, shuffle: bool
) -> tuple[Array, Array]:
    """Numbers of a batch's samples, and which of them belong to the epoch."""
    place = position * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    inside = jnp.minimum(place, count - 1)
    return (shuffled(inside, count, seed, epoch) if shuffle else inside), place < count  # type: ignore[arg-type]


def _gather(
    order: Callable[..., tuple[Array, Array]],
    whole: NamedSharding | None,
    samples: Samples,
    seed: Array,
    epoch: Array,
    position: Array,
) -> Frames:
    """A batch on the device; every device makes the whole order, so that none waits for another."""
    index, valid = order(seed, epoch, position)
    if whole is not None:
        index, valid = jax.lax.with_sharding_constraint((index, valid), whole)
    frames = samples.take(index)
    return frames.within(_beside(valid, frames.valid))


def _beside(valid, frames_valid):
    """[B] with the dimensions of [B …]."""
    return valid.reshape(valid.shape + (1,) * (frames_valid.ndim - 1))
