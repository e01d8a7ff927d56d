"""The exact map: free coordinates q -> OpenSim's coordinates and MuJoCo's qpos.

Couplers, locked coordinates and the splines of custom joints make both an affine function of q and of a
few non-linear terms (see ``simspine_jax.io.sidecar``). The map is constant, so its matrices are static:
they become constants of the compiled program.

Arrays here are *frames last*, ``[Q *frames]``: XLA then runs one vector instruction over frames instead of
many over components.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from simspine_jax.arrays import Array, Float
from simspine_jax.io.sidecar import Affine, ModelDescription


@dataclass(frozen=True, eq=False)
class CoordinateMap:
    """Constant matrices of the map, in float64; equal maps compare and hash equal, so jit caches by content.

    With ``u = argument_matrix @ q + argument_offset + argument_terms @ g`` and ``g = function(u)``:
    ``full = full_matrix @ q + full_offset + full_terms @ g``, likewise ``qpos``.
    """

    full_matrix: np.ndarray  # [C Q]
    full_offset: np.ndarray  # [C]
    full_terms: np.ndarray  # [C G]
    qpos_matrix: np.ndarray  # [N Q]
    qpos_offset: np.ndarray  # [N]
    qpos_terms: np.ndarray  # [N G]
    argument_matrix: np.ndarray  # [G Q]
    argument_offset: np.ndarray  # [G]
    argument_terms: np.ndarray  # [G G], strictly lower
    breaks: np.ndarray  # [G P], padded with +inf
    coefficients: np.ndarray  # [G P D], powers of (u - break)
    sinusoids: np.ndarray  # [G 4]: amplitude, omega, phase, offset; amplitude 0 for polynomials
    free_indices: np.ndarray  # [Q] where q stands among the full coordinates

    @cached_property
    def digest(self) -> str:
        """Hash of all contents."""
        arrays = [np.ascontiguousarray(v) for k, v in sorted(vars(self).items()) if isinstance(v, np.ndarray)]
        return hashlib.sha256(b"".join(str(a.shape).encode() + a.tobytes() for a in arrays)).hexdigest()

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CoordinateMap) and self.digest == other.digest

    @cached_property
    def dependence(self) -> np.ndarray:
        """``[N Q]``: whether an entry of qpos changes with a free coordinate, directly or through terms."""
        through = self.argument_matrix != 0
        for _ in range(_chain_length(self)):
            through = through | ((self.argument_terms != 0) @ through)
        return (self.qpos_matrix != 0) | ((self.qpos_terms != 0) @ through)

    @property
    def n_terms(self) -> int:
        """Number of non-linear terms G."""
        return len(self.argument_offset)


def build_coordinate_map(description: ModelDescription) -> CoordinateMap:
    """Gathers the sidecar's expressions into matrices."""
    free = [c.name for c in description.coordinates if c.role == "free"]
    column = {name: i for i, name in enumerate(free)}
    term = {t.name: i for i, t in enumerate(description.terms)}

    def rows(expressions: list[Affine]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        matrix = np.zeros((len(expressions), len(free)))
        terms = np.zeros((len(expressions), len(term)))
        for i, expression in enumerate(expressions):
            for name, value in expression.coefficients.items():
                matrix[i, column[name]] = value
            for name, value in expression.terms.items():
                terms[i, term[name]] = value
        return matrix, np.array([e.constant for e in expressions]), terms

    full = rows([c.value for c in description.coordinates])
    qpos = rows([j.value for j in description.joint_positions])
    argument = rows([t.argument for t in description.terms])
    breaks, coefficients, sinusoids = _pad_functions(description)
    names = [c.name for c in description.coordinates]
    return CoordinateMap(
        *full,
        *qpos,
        *argument,
        breaks,
        coefficients,
        sinusoids,
        np.array([names.index(n) for n in free], int),
    )


def _pad_functions(description: ModelDescription) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    polynomials = [t.polynomial for t in description.terms]
    pieces = max([len(p.breaks) for p in polynomials if p] or [1])
    degree = max([len(c) for p in polynomials if p for c in p.coefficients] or [1])
    breaks = np.full((len(polynomials), pieces), np.inf)
    coefficients = np.zeros((len(polynomials), pieces, degree))
    sinusoids = np.zeros((len(polynomials), 4))
    for i, t in enumerate(description.terms):
        if t.polynomial is not None:
            for k, (b, c) in enumerate(zip(t.polynomial.breaks, t.polynomial.coefficients, strict=True)):
                breaks[i, k] = b
                coefficients[i, k, : len(c)] = c
        elif (s := t.sinusoid) is not None:
            breaks[i, 0] = 0.0
            sinusoids[i] = s.amplitude, s.omega, s.phase, s.offset
    return breaks, coefficients, sinusoids


def _column(values: np.ndarray, like: Array) -> Array:
    """A constant vector shaped to broadcast over ``like``'s frames."""
    return jnp.asarray(values, like.dtype).reshape(len(values), *([1] * (like.ndim - 1)))


def _times(matrix: np.ndarray, q: Float[Array, "a *frames"]) -> Float[Array, "b *frames"]:
    """``matrix @ q`` in full precision, whatever the device's default."""
    flat = q.reshape(q.shape[0], -1)
    exact = jnp.tensordot(jnp.asarray(matrix, q.dtype), flat, axes=1, precision=jax.lax.Precision.HIGHEST)
    return exact.reshape(matrix.shape[0], *q.shape[1:])


def evaluate_functions(
    m: CoordinateMap, u: Float[Array, "G *frames"], derivative: int = 0
) -> Float[Array, "G *frames"]:
    """The terms' functions, or their first or second derivative, at their arguments.

    Pieces are chosen without a gather: every piece is evaluated and the right one selected.
    """
    coefficients = m.coefficients
    for _ in range(derivative):
        powers = np.arange(1, max(coefficients.shape[-1], 1))
        coefficients = coefficients[..., 1:] * powers if len(powers) else np.zeros_like(coefficients)
    value = jnp.zeros_like(u)
    for piece in range(m.breaks.shape[1]):
        start = np.where(np.isfinite(m.breaks[:, piece]), m.breaks[:, piece], 0.0)
        distance = u - _column(start, u)
        polynomial = jnp.zeros_like(u)
        for k in reversed(range(coefficients.shape[-1])):
            polynomial = polynomial * distance + _column(coefficients[:, piece, k], u)
        inside = u >= _column(m.breaks[:, piece], u)
        value = polynomial if piece == 0 else jnp.where(inside, polynomial, value)
    if np.any(m.sinusoids):
        amplitude, omega, phase, offset = (_column(column, u) for column in m.sinusoids.T)
        angle = omega * u + phase + derivative * (jnp.pi / 2)
        wave = amplitude * omega**derivative * jnp.sin(angle) + (offset if derivative == 0 else 0.0)
        value = jnp.where(_column(np.any(m.sinusoids != 0, axis=1), u), wave, value)
    return value


def evaluate_terms(
    m: CoordinateMap, q: Float[Array, "Q *frames"]
) -> tuple[Float[Array, "G *frames"], Float[Array, "G *frames"]]:
    """Arguments u and values g of the terms; chains of terms are resolved level by level."""
    affine = _times(m.argument_matrix, q) + _column(m.argument_offset, q)
    arguments, values = affine, evaluate_functions(m, affine)
    for _ in range(_chain_length(m)):
        arguments = affine + _times(m.argument_terms, values)
        values = evaluate_functions(m, arguments)
    return arguments, values


def _chain_length(m: CoordinateMap) -> int:
    """How many times terms feed terms before the last one is settled."""
    length, reach = 0, m.argument_terms != 0
    step = reach.copy()
    while step.any():
        length += 1
        step = (step.astype(int) @ reach.astype(int)) > 0
    return length


def free_to_full(m: CoordinateMap, q: Float[Array, "Q *frames"]) -> Float[Array, "C *frames"]:
    """All coordinates from the free ones."""
    full = _times(m.full_matrix, q) + _column(m.full_offset, q)
    return full + _times(m.full_terms, evaluate_terms(m, q)[1]) if m.n_terms else full


def free_to_qpos(m: CoordinateMap, q: Float[Array, "Q *frames"]) -> Float[Array, "N *frames"]:
    """MuJoCo's ``qpos`` from the free coordinates."""
    qpos = _times(m.qpos_matrix, q) + _column(m.qpos_offset, q)
    return qpos + _times(m.qpos_terms, evaluate_terms(m, q)[1]) if m.n_terms else qpos
