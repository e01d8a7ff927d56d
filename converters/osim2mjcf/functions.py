"""OpenSim functions as exact affine expressions, piecewise polynomials or sinusoids.

Piecewise functions are not re-derived from their definitions: each piece is recovered from OpenSim's own
values at Chebyshev nodes, as the polynomial of least degree that reproduces OpenSim at other points to
rounding. What no polynomial reproduces is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import opensim as osim

from simspine_jax.errors import UnsupportedModelError
from simspine_jax.io.sidecar import Affine, PiecewisePolynomial, Sinusoid, Term

# What a fit of degree 7 may lose to rounding, relative to the sizes of its terms.
RELATIVE_TOLERANCE = 2e-13
# How many knot ranges beyond the knots the extrapolation is checked.
EXTRAPOLATION_SPANS = (0.01, 0.1, 0.3, 1.0, 3.0)
XY_DEGREES = {"SimmSpline": 3, "PiecewiseLinearFunction": 1, "PiecewiseConstantFunction": 0}


class TermTable:
    """Collects the non-linear terms of a model and gives them names."""

    def __init__(self) -> None:
        self.terms: list[Term] = []

    def add(self, argument: Affine, function: PiecewisePolynomial | Sinusoid) -> Affine:
        """Registers ``function(argument)`` and returns it as an expression."""
        name = f"term{len(self.terms)}"
        polynomial = function if isinstance(function, PiecewisePolynomial) else None
        sinusoid = function if isinstance(function, Sinusoid) else None
        self.terms.append(Term(name, argument, polynomial, sinusoid))
        return Affine(terms={name: 1.0})


def combine(constant: float, parts: list[tuple[float, Affine]]) -> Affine:
    """``constant + sum weight * expression``, with zero coefficients left out."""
    coefficients: dict[str, float] = {}
    terms: dict[str, float] = {}
    for weight, part in parts:
        constant += weight * part.constant
        for total, source in ((coefficients, part.coefficients), (terms, part.terms)):
            for name, value in source.items():
                total[name] = total.get(name, 0.0) + weight * value
    return Affine(
        constant,
        {k: v for k, v in coefficients.items() if v != 0.0},
        {k: v for k, v in terms.items() if v != 0.0},
    )


def is_constant(expression: Affine) -> bool:
    """Whether the expression depends on nothing."""
    return not expression.coefficients and not expression.terms


def apply(function: osim.Function, arguments: list[Affine], table: TermTable, where: str) -> Affine:
    """The expression ``function(*arguments)``.

    Raises:
        UnsupportedModelError: the function's class has no exact form; the message names it and ``where``.
    """
    kind = function.getConcreteClassName()
    if kind == "Constant":
        return Affine(function.calcValue(osim.Vector(max(len(arguments), 1), 0.0)))
    if kind == "MultiplierFunction":
        multiplier = osim.MultiplierFunction.safeDownCast(function)
        return combine(
            0.0, [(multiplier.getScale(), apply(multiplier.getFunction(), arguments, table, where))]
        )
    if kind == "LinearFunction":
        coefficients = _to_list(osim.LinearFunction.safeDownCast(function).getCoefficients())
        if len(coefficients) != len(arguments) + 1:
            raise UnsupportedModelError(
                f"{where}: its LinearFunction has {len(coefficients)} coefficients, which needs "
                f"{len(coefficients) - 1} coordinates, not {len(arguments)}"
            )
        return combine(coefficients[-1], list(zip(coefficients[:-1], arguments, strict=True)))
    if len(arguments) != 1:
        raise UnsupportedModelError(f"{where}: a {kind} of {len(arguments)} coordinates is not supported")
    exact = _nonlinear(function, kind, where)
    if is_constant(arguments[0]):
        return Affine(function.calcValue(osim.Vector(1, arguments[0].constant)))
    return table.add(arguments[0], exact)


def _nonlinear(function: osim.Function, kind: str, where: str) -> PiecewisePolynomial | Sinusoid:
    if kind == "Sine":
        # OpenSim's Python class has no getters for these.
        def number(name: str) -> float:
            return osim.PropertyHelper.getValueDouble(function.getPropertyByName(name))

        return Sinusoid(number("amplitude"), number("omega"), number("phase"), number("offset"), kind)
    if kind == "PolynomialFunction":
        polynomial = osim.PolynomialFunction.safeDownCast(function)
        vector = polynomial.getCoefficients()
        highest_first = [vector.get(i) for i in range(vector.size())]
        return PiecewisePolynomial((0.0,), (tuple(highest_first[::-1]),), kind)
    if kind in XY_DEGREES:
        knots = function_knots(getattr(osim, kind).safeDownCast(function))
        return _piecewise(function, knots, XY_DEGREES[kind], where)
    if kind == "GCVSpline":
        spline = osim.GCVSpline.safeDownCast(function)
        return _piecewise(function, function_knots(spline), spline.getDegree(), where)
    if kind == "StepFunction":
        # A quintic between two constants.
        step = osim.StepFunction.safeDownCast(function)
        return _piecewise(function, [step.getStartTime(), step.getEndTime()], 5, where)
    raise UnsupportedModelError(f"{where}: the function class {kind} is not supported")


def function_knots(function) -> list[float]:
    """Abscissae of a function given by points."""
    return [function.getX(i) for i in range(function.getNumberOfPoints())]


def _to_list(array) -> list[float]:
    return [array.get(i) for i in range(array.getSize())]


def _piecewise(function: osim.Function, knots: list[float], degree: int, where: str) -> PiecewisePolynomial:
    x = np.unique(np.asarray(knots, dtype=float))
    if len(knots) < 2 or len(x) < 2 or not np.isfinite(x).all():
        raise UnsupportedModelError(
            f"{where}: its {function.getConcreteClassName()} needs two different knots"
        )
    span = x[-1] - x[0]

    def values(points: np.ndarray) -> np.ndarray:
        return np.array([function.calcValue(osim.Vector(1, float(p))) for p in points])

    before = [x[0] - span * s for s in EXTRAPOLATION_SPANS]
    after = [x[-1] + span * s for s in EXTRAPOLATION_SPANS]
    ends = np.concatenate([[x[0] - span], x, [x[-1] + span]])
    pieces = []
    for i, (a, b) in enumerate(itertools.pairwise(ends)):
        further = before if i == 0 else after if i == len(ends) - 2 else []
        pieces.append(_fit_piece(values, a, b, degree, np.array(further), f"{where}, {a:.6g} to {b:.6g}"))
    breaks = list(map(float, ends[:-1]))
    for i in range(1, len(breaks)):
        # A jump belongs to the piece whose value OpenSim gives at the knot itself.
        at_knot = values(np.array([breaks[i]]))[0]
        left = np.polynomial.polynomial.polyval(breaks[i] - breaks[i - 1], pieces[i - 1])
        if abs(at_knot - left) < abs(at_knot - pieces[i][0]) - RELATIVE_TOLERANCE * (1 + abs(at_knot)):
            breaks[i] = float(np.nextafter(breaks[i], np.inf))
    return PiecewisePolynomial(tuple(breaks), tuple(pieces), function.getConcreteClassName())


def _fit_piece(
    values: Callable[[np.ndarray], np.ndarray],
    a: float,
    b: float,
    degree: int,
    further: np.ndarray,
    where: str,
) -> tuple[float, ...]:
    """Local coefficients of the least-degree polynomial equal to ``values`` on (a, b) and at ``further``."""
    width = b - a
    checks = np.concatenate([a + width * np.linspace(0.03, 0.97, 2 * degree + 5), further])
    target = values(checks)
    for d in range(degree + 1):
        nodes = 0.5 - 0.5 * np.cos((np.arange(d + 1) + 0.5) * np.pi / (d + 1))
        local = np.linalg.solve(np.vander(nodes, increasing=True), values(a + width * nodes))
        coefficients = local / width ** np.arange(d + 1)
        fitted = np.polynomial.polynomial.polyval(checks - a, coefficients)
        # Far outside the knots rounding grows with the distance, as in OpenSim's own evaluation.
        size = np.polynomial.polynomial.polyval(np.abs(checks - a), np.abs(coefficients))
        if np.all(np.abs(fitted - target) <= RELATIVE_TOLERANCE * (size + np.abs(target) + 1e-3)):
            return tuple(map(float, coefficients))
    raise UnsupportedModelError(f"{where}: OpenSim's values there are not a polynomial of degree {degree}")
