"""What a rendered picture is dressed, furnished and lit with, by seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Color = tuple[float, float, float]
Vector = NDArray[np.float64]

PATTERN_PX = 128
"""Width and height of a pattern."""

N_FURNITURE = 4
"""Boxes that stand about, at most."""

N_LIGHTS = 3

# From light to dark, of the Fitzpatrick scale's six types and two between them; chosen by eye.
_SKINS: tuple[Color, ...] = (
    (0.94, 0.80, 0.71), (0.90, 0.73, 0.62), (0.84, 0.66, 0.52), (0.75, 0.56, 0.42),
    (0.64, 0.46, 0.33), (0.52, 0.36, 0.25), (0.40, 0.27, 0.19), (0.29, 0.20, 0.15),
)  # fmt: skip
_HAIRS: tuple[Color, ...] = (
    (0.08, 0.07, 0.06), (0.16, 0.11, 0.08), (0.28, 0.18, 0.11), (0.42, 0.27, 0.15),
    (0.66, 0.52, 0.30), (0.80, 0.68, 0.45), (0.50, 0.24, 0.12), (0.62, 0.61, 0.60),
)  # fmt: skip
_TROUSERS: tuple[Color, ...] = (
    (0.14, 0.18, 0.30), (0.22, 0.29, 0.45), (0.35, 0.45, 0.62), (0.10, 0.10, 0.11), (0.25, 0.25, 0.27),
    (0.62, 0.55, 0.42), (0.34, 0.36, 0.24), (0.40, 0.28, 0.20), (0.75, 0.74, 0.70), (0.45, 0.12, 0.15),
)  # fmt: skip
_HAIR_CUTS = ("short", "short", "full", "long", "cap", "bald")


class Pattern(NamedTuple):
    """Which one of the patterns, and the colour that it takes on."""

    index: int
    color: Color


@dataclass(frozen=True)
class Outfit:
    """What a person wears.

    Attributes:
        parts: names of the figure's surfaces that are shown beside skin, shoes and face.
        skin: colour.
        hair: colour.
        shirt: pattern.
        trousers: pattern.
        shoes: colour, also that of a cap.
        features: colour of eyes and mouth, darker than the skin.
    """

    parts: frozenset[str]
    skin: Color
    hair: Color
    shirt: Pattern
    trousers: Pattern
    shoes: Color
    features: Color


class Box(NamedTuple):
    """A box in ground: centre and half sizes (m), heading about the vertical (rad) and pattern."""

    center: tuple[float, float, float]
    half: tuple[float, float, float]
    heading: float
    pattern: Pattern


class Light(NamedTuple):
    """A lamp at ``place`` or, if it casts shadows, parallel light along ``direction``."""

    place: tuple[float, float, float]
    direction: tuple[float, float, float]
    color: Color
    shadow: bool


@dataclass(frozen=True)
class Room:
    """Where a person is.

    Attributes:
        low: corner of the floor (x, z), m.
        high: the opposite one.
        ceiling: its height, m; None under the open sky, where there are no walls either.
        floor: pattern.
        walls: four patterns, of the sides at low x, high x, low z, high z.
        roof: colour of the ceiling.
        furniture: boxes.
        lights: lamps.
        ambient: light from everywhere.
    """

    low: tuple[float, float]
    high: tuple[float, float]
    ceiling: float | None
    floor: Pattern
    walls: tuple[Pattern, Pattern, Pattern, Pattern]
    roof: Color
    furniture: tuple[Box, ...]
    lights: tuple[Light, ...]
    ambient: Color


def _color(
    random: np.random.Generator, low: float = 0.08, high: float = 0.95, most_vivid: float = 1.0
) -> Color:
    """Any hue, more often dull than vivid."""
    value, hue = random.uniform(low, high), random.uniform(0, 2 * np.pi)
    vivid = most_vivid * value * random.beta(1.2, 2.2)
    red, green, blue = (
        float(np.clip(value + vivid * (math.cos(hue - turn) - 0.3), 0.02, 1)) for turn in (0, 2.094, 4.189)
    )
    return red, green, blue


def _varied(random: np.random.Generator, color: Color, spread: float = 0.04) -> Color:
    red, green, blue = np.clip(
        np.array(color) * random.normal(1, spread) + random.normal(0, 0.01, 3), 0.02, 1
    )
    return float(red), float(green), float(blue)


def draw_outfit(random: np.random.Generator) -> Outfit:
    """Clothes, skin and hair at random."""
    skin = _varied(random, _SKINS[random.integers(len(_SKINS))])
    dark = tuple(0.45 * c for c in skin)
    sleeve = random.choice(["short", "long", "long"])
    leg = random.choice(["long", "long", "long", "shorts"])
    shirt = random.choice(["tucked", "loose", "loose"])
    hair = random.choice(_HAIR_CUTS)
    parts = {f"shirt/{shirt}", f"hair/{hair}"}
    parts |= {f"{side}_arm/{sleeve}" for side in ("right", "left")}
    parts |= {f"{side}_leg/{leg}" for side in ("right", "left")}
    trousers = _varied(random, _TROUSERS[random.integers(len(_TROUSERS))], 0.15)
    return Outfit(
        frozenset(parts),
        skin,
        _varied(random, _HAIRS[random.integers(len(_HAIRS))], 0.1),
        _pattern(random, _SHIRTS, _color(random, 0.12, 0.95)),
        _pattern(random, _LEGS, trousers),
        _color(random, 0.05, 0.9),
        dark,  # type: ignore[arg-type]
    )


def _pattern(random: np.random.Generator, indices: tuple[int, ...], color: Color) -> Pattern:
    return Pattern(indices[random.integers(len(indices))], color)


def draw_room(
    random: np.random.Generator,
    people: Vector,
    camera: Vector,
    seat: Box | None,
    occlude: bool,
) -> Room:
    """A room that holds person and camera, with furniture away from the person.

    Args:
        random: what is drawn from.
        people: ``[P 3]`` points of the person in ground, m.
        camera: ``[3]`` where it stands.
        seat: what the person sits on.
        occlude: whether furniture may stand between the camera and the person.
    """
    points = np.concatenate([people, camera[None]])[:, ::2]
    low = points.min(axis=0) - random.uniform(0.4, 2.8, 2)
    high = points.max(axis=0) + random.uniform(0.4, 2.8, 2)
    inside = random.random() < 0.85
    ceiling = max(float(random.uniform(2.4, 3.4)), float(camera[1]) + 0.2)
    wall = _pattern(random, _SIDES, _color(random, 0.45, 0.98, 0.4))
    walls = [
        wall if random.random() < 0.75 else _pattern(random, _SIDES, _color(random, 0.35, 0.98, 0.5))
        for _ in range(4)
    ]
    furniture = list(_draw_furniture(random, people, camera, (low, high), occlude))
    grey = float(random.uniform(0.7, 1.0))
    return Room(
        (float(low[0]), float(low[1])),
        (float(high[0]), float(high[1])),
        ceiling if inside else None,
        _pattern(random, _FLOORS, _color(random, 0.25, 0.9, 0.45)),
        (walls[0], walls[1], walls[2], walls[3]),
        (grey, grey, grey),
        tuple(furniture if seat is None else [*furniture, *_chair(random, seat)]),
        _draw_lights(random, people.mean(axis=0), low, high, ceiling),
        _warm(random, float(random.uniform(0.30, 0.50))),
    )


def _draw_furniture(
    random: np.random.Generator,
    people: Vector,
    camera: Vector,
    floor: tuple[Vector, Vector],
    occlude: bool,
):
    """Boxes on the floor or on a wall, none within 0.3 m of the person or 0.8 m of the camera."""
    person, eye = people[:, ::2], camera[::2]
    reach = np.linalg.norm(eye - person.mean(axis=0))
    for _ in range(int(random.integers(0, N_FURNITURE + 1))):
        half = random.uniform((0.15, 0.15, 0.15), (0.7, 0.6, 0.5))
        if random.random() < 0.25:
            half[1] = random.uniform(0.7, 1.1)
        if occlude and random.random() < 0.5:
            share = random.uniform(0.3, 0.75)
            place = eye + share * (person.mean(axis=0) - eye) + random.normal(0, 0.3, 2)
            half[1] = min(half[1], 0.45)
        else:
            place = random.uniform(floor[0], floor[1])
        radius = math.hypot(half[0], half[2])
        far = np.linalg.norm(person - place, axis=1).min() - radius
        if far < 0.3 or np.linalg.norm(eye - place) - radius < 0.8:
            continue
        toward = (person.mean(axis=0) - eye) / reach
        along = float((place - eye) @ toward)
        side = abs(float((place - eye) @ np.array([-toward[1], toward[0]])))
        if not occlude and 0 < along < reach and side < radius + 0.6:
            continue
        yield Box(
            (float(place[0]), float(half[1]), float(place[1])),
            (float(half[0]), float(half[1]), float(half[2])),
            float(random.uniform(0, np.pi)),
            _pattern(random, _BOXES, _color(random, 0.15, 0.95, 0.7)),
        )


def _chair(random: np.random.Generator, seat: Box):
    """A stool, or a chair with a back behind the person: the seat, legs or a block, and a back."""
    (x, top, z), (deep, thick, wide) = seat.center, seat.half
    forward = np.array([math.cos(seat.heading), -math.sin(seat.heading)])
    aside = np.array([math.sin(seat.heading), math.cos(seat.heading)])
    yield seat
    under = top - thick
    if random.random() < 0.3:
        half = (0.9 * deep, under / 2, 0.9 * wide)
        yield Box((x, under / 2, z), half, seat.heading, seat.pattern)
    else:
        for a, b in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            leg = np.array([x, z]) + 0.85 * (a * deep * forward + b * wide * aside)
            half = (0.018, under / 2, 0.018)
            yield Box((float(leg[0]), under / 2, float(leg[1])), half, seat.heading, seat.pattern)
    if random.random() < 0.5:
        high = float(random.uniform(0.12, 0.22))
        back = np.array([x, z]) - (deep + 0.03) * forward
        half = (0.015, high / 2, 0.9 * wide)
        place = (float(back[0]), top + random.uniform(0.04, 0.16) + high / 2, float(back[1]))
        yield Box(place, half, seat.heading, seat.pattern)


def _warm(random: np.random.Generator, brightness: float) -> Color:
    warmth = float(random.normal(0, 0.06))
    return brightness * (1 + warmth), brightness, brightness * (1 - warmth)


def _draw_lights(
    random: np.random.Generator, center: Vector, low: Vector, high: Vector, ceiling: float
) -> tuple[Light, ...]:
    count = int(random.integers(1, N_LIGHTS + 1))
    lights = []
    for i in range(count):
        shadow = i == 0 and random.random() < 0.75
        turn, fall = random.uniform(0, 2 * np.pi), random.uniform(0.5, 1.35)
        direction = (
            math.cos(turn) * math.cos(fall), -math.sin(fall), math.sin(turn) * math.cos(fall)
        )  # fmt: skip
        x, z = random.uniform(low, high)
        place = center - 5 * np.array(direction) if shadow else np.array([x, ceiling - 0.2, z])
        color = _warm(random, float(random.uniform(0.5, 0.9) / math.sqrt(count)))
        lights.append(Light((float(place[0]), float(place[1]), float(place[2])), direction, color, shadow))
    return tuple(lights)


def draw_patterns(random: np.random.Generator) -> NDArray[np.uint8]:
    """``[P px px 3]``: pale patterns that repeat, for a colour to be laid over; the first is plain."""
    return np.stack([_inked(random, draw(random)) for draw in _PATTERNS])


def _inked(random: np.random.Generator, pattern: Vector) -> NDArray[np.uint8]:
    """A pattern in 0 … 1 between white and a second colour."""
    ink = np.array(_color(random, 0.25, 0.8, 0.5))
    shade = 1 - pattern[..., None] * (1 - ink)
    return (255 * np.clip(shade, 0, 1)).astype(np.uint8)


def _grid() -> tuple[Vector, Vector]:
    axis = (np.arange(PATTERN_PX) + 0.5) / PATTERN_PX
    x, y = np.meshgrid(axis, axis)
    return x, y


def _plain(random: np.random.Generator) -> Vector:
    return _speckles(random, 0.02)


def _speckles(random: np.random.Generator, amount: float = 0.12) -> Vector:
    return np.clip(amount * (0.5 + 0.5 * random.standard_normal((PATTERN_PX, PATTERN_PX))), 0, 1)


def _stripes(random: np.random.Generator) -> Vector:
    x, y = _grid()
    phase = (y if random.random() < 0.7 else x) * random.integers(2, 7)
    return (phase % 1 < random.uniform(0.15, 0.6)).astype(float)


def _checks(random: np.random.Generator) -> Vector:
    x, y = _grid()
    count = 2 * random.integers(1, 4)
    return ((np.floor(x * count) + np.floor(y * count)) % 2) * random.uniform(0.4, 1)


def _weave(random: np.random.Generator) -> Vector:
    x, y = _grid()
    count, wide = random.integers(2, 5), random.uniform(0.2, 0.5)
    return 0.5 * ((x * count) % 1 < wide) + 0.5 * ((y * count) % 1 < wide)


def _blots(random: np.random.Generator) -> Vector:
    """Smooth noise that repeats: a few waves with random phases."""
    x, y = _grid()
    total = np.zeros_like(x)
    for _ in range(24):
        u, v = random.integers(-5, 6, 2)
        total += np.cos(2 * np.pi * (u * x + v * y + random.random())) / (1 + math.hypot(u, v))
    total = (total - total.min()) / np.ptp(total)
    return (total > 0.55).astype(float) if random.random() < 0.4 else total * random.uniform(0.4, 1)


def _planks(random: np.random.Generator) -> Vector:
    x, y = _grid()
    count = int(random.integers(3, 7))
    tone = random.uniform(0, 0.5, count)[np.floor(y * count).astype(int)]
    grain = 0.1 * np.cos(2 * np.pi * (3 * x + 0.3 * np.sin(2 * np.pi * count * 3 * y)))
    return np.clip(tone + grain + 0.5 * ((y * count) % 1 < 0.04), 0, 1)


def _bricks(random: np.random.Generator) -> Vector:
    x, y = _grid()
    rows = 2 * int(random.integers(2, 5))
    shift = 0.5 * (np.floor(y * rows) % 2)
    joint = ((y * rows) % 1 < 0.1) | ((x * rows / 2 + shift) % 1 < 0.06)
    return np.clip(0.7 * joint + _speckles(random, 0.2), 0, 1)


def _tiles(random: np.random.Generator) -> Vector:
    x, y = _grid()
    count = int(random.integers(2, 5))
    joint = ((y * count) % 1 < 0.05) | ((x * count) % 1 < 0.05)
    return np.clip(0.6 * joint + _speckles(random, 0.1), 0, 1)


def _dots(random: np.random.Generator) -> Vector:
    x, y = _grid()
    count = int(random.integers(3, 7))
    away = np.hypot((x * count) % 1 - 0.5, (y * count) % 1 - 0.5)
    return (away < random.uniform(0.15, 0.35)).astype(float)


_PATTERNS = (
    _plain, _speckles, _stripes, _stripes, _weave, _weave, _checks, _dots, _blots, _planks, _planks, _bricks,
    _tiles,
)  # fmt: skip
# Which of them clothes, walls, floors and furniture may have; those named twice are drawn more often.
_SHIRTS = (0, 0, 0, 1, 2, 3, 4, 5, 7, 8)
_LEGS = (0, 0, 0, 0, 0, 1, 5)
_SIDES = (0, 0, 0, 0, 1, 2, 8, 9, 11)
_FLOORS = (0, 1, 6, 8, 9, 10, 9, 10, 12)
_BOXES = (0, 0, 1, 8, 9, 10, 10)
