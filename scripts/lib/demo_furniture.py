"""Furniture of the demo's rooms: convex solids in a frame of their own, and the pieces made of them.

Local frame of a piece: x to the right for someone who faces it, y from the wall towards them, z up; metres.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

Rgb = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {  # furniture
    "red": (206, 38, 40),
    "orange": (240, 128, 24),
    "yellow": (244, 208, 50),
    "green": (44, 150, 66),
    "blue": (40, 88, 204),
    "purple": (128, 58, 168),
    "pink": (244, 132, 178),
    "black": (46, 46, 52),
    "white": (242, 241, 236),
}
WOOD: Rgb = (150, 102, 60)
DARK_WOOD: Rgb = (104, 70, 44)

# width along the wall and depth, with some air
SIZES: dict[str, tuple[float, float]] = {
    "sofa": (2.0, 0.9),
    "armchair": (1.0, 0.9),
    "bed": (1.7, 2.0),
    "desk": (1.46, 0.72),
    "bookshelf": (1.2, 0.36),
    "wardrobe": (1.3, 0.6),
    "cabinet": (1.14, 0.45),
    "piano": (1.46, 0.66),
    "tv stand": (1.54, 0.48),
    "fridge": (0.78, 0.7),
    "stove": (0.7, 0.66),
    "counter": (1.46, 0.64),
    "lamp": (0.6, 0.58),
    "plant": (0.64, 0.64),
    "nightstand": (0.52, 0.46),
}
# local (x, y, z) where a small thing can stand on a piece
SURFACES: dict[str, tuple[float, float, float]] = {
    "sofa": (0.0, 0.64, 0.46),
    "armchair": (0.0, 0.64, 0.46),
    "bed": (0.1, 1.3, 0.56),
    "cabinet": (-0.15, 0.24, 1.1),
    "desk": (0.42, 0.36, 0.77),
    "counter": (0.4, 0.32, 0.9),
    "nightstand": (0.0, 0.22, 0.55),
}
COLOURED = ("sofa", "armchair", "bed", "desk", "bookshelf", "wardrobe", "cabinet", "piano", "tv stand", "counter",
             "nightstand")  # fmt: skip


class Draws(Protocol):
    """What the generators need of a random source; random.Random and numpy's Generator both have it."""

    def random(self) -> float: ...


# ------------------------------------------------------------------------------------------------ solids


@dataclass(frozen=True)
class Face:
    """A flat convex polygon of a solid: corners (k, 3), outward normal (3,), colour."""

    corners: tuple[tuple[float, float, float], ...]
    normal: tuple[float, float, float]
    colour: Rgb
    glow: bool = False  # shines by itself: takes no shade


@dataclass(frozen=True)
class Solid:
    """A convex solid; details painted on a face follow it in `faces`."""

    faces: tuple[Face, ...]
    low: tuple[float, float, float]
    high: tuple[float, float, float]


def box(
    x0: float,
    x1: float,
    y0: float,
    y1: float,
    z0: float,
    z1: float,
    colour: Rgb,
    glow: bool = False,
    front: Sequence[tuple[float, float, float, float, Rgb]] = (),
    top: Rgb | None = None,
) -> Solid:
    """Axis-aligned box.

    Args:
        front: rectangles (u0, u1, v0, v1, colour), in shares of the face, painted on the face y = y1.
        top: colour of the upper face if it differs.
    """
    faces = [
        Face(((x0, y0, z0), (x1, y0, z0), (x1, y0, z1), (x0, y0, z1)), (0, -1, 0), colour, glow),
        Face(((x0, y1, z0), (x1, y1, z0), (x1, y1, z1), (x0, y1, z1)), (0, 1, 0), colour, glow),
        Face(((x0, y0, z0), (x0, y1, z0), (x0, y1, z1), (x0, y0, z1)), (-1, 0, 0), colour, glow),
        Face(((x1, y0, z0), (x1, y1, z0), (x1, y1, z1), (x1, y0, z1)), (1, 0, 0), colour, glow),
        Face(((x0, y0, z0), (x1, y0, z0), (x1, y1, z0), (x0, y1, z0)), (0, 0, -1), colour, glow),
        Face(((x0, y0, z1), (x1, y0, z1), (x1, y1, z1), (x0, y1, z1)), (0, 0, 1), top or colour, glow),
    ]
    for u0, u1, v0, v1, paint in front:
        a, b = x0 + u0 * (x1 - x0), x0 + u1 * (x1 - x0)
        c, d = z0 + v0 * (z1 - z0), z0 + v1 * (z1 - z0)
        faces.append(Face(((a, y1, c), (b, y1, c), (b, y1, d), (a, y1, d)), (0, 1, 0), paint, glow))
    return Solid(tuple(faces), (x0, y0, z0), (x1, y1, z1))


def cone(
    x: float, y: float, r0: float, r1: float, z0: float, z1: float, colour: Rgb, glow: bool = False, sides: int = 12
) -> Solid:
    """Upright round solid with radius r0 at z0 and r1 at z1."""
    around = [2 * math.pi * i / sides for i in range(sides)]
    low = [(x + r0 * math.cos(a), y + r0 * math.sin(a), z0) for a in around]
    high = [(x + r1 * math.cos(a), y + r1 * math.sin(a), z1) for a in around]
    slope = (r0 - r1) / (z1 - z0)
    length = math.sqrt(1 + slope * slope)
    faces = [Face(tuple(low), (0, 0, -1), colour, glow), Face(tuple(high), (0, 0, 1), colour, glow)]
    for i in range(sides):
        j = (i + 1) % sides
        middle = 2 * math.pi * (i + 0.5) / sides
        normal = (math.cos(middle) / length, math.sin(middle) / length, slope / length)
        faces.append(Face((low[i], low[j], high[j], high[i]), normal, colour, glow))
    r = max(r0, r1)
    return Solid(tuple(faces), (x - r, y - r, z0), (x + r, y + r, z1))


def ball(x: float, y: float, z: float, r: float, colour: Rgb, band: Rgb | None = None) -> Solid:
    """Round solid of flat faces; `band` colours its waist."""
    sides, rings = 10, 6
    faces: list[Face] = []
    for ring in range(rings):
        a, b = math.pi * ring / rings - math.pi / 2, math.pi * (ring + 1) / rings - math.pi / 2
        for side in range(sides):
            c, d = 2 * math.pi * side / sides, 2 * math.pi * (side + 1) / sides
            corners = [(x + r * math.cos(e) * math.cos(f), y + r * math.cos(e) * math.sin(f), z + r * math.sin(e))
                       for e, f in ((a, c), (a, d), (b, d), (b, c))]  # fmt: skip
            if ring == 0:
                corners = corners[1:]
            elif ring == rings - 1:
                corners = corners[:3]
            e, f = (a + b) / 2, (c + d) / 2
            normal = (math.cos(e) * math.cos(f), math.cos(e) * math.sin(f), math.sin(e))
            paint = band if band and ring in (rings // 2 - 1, rings // 2) and side % 2 else colour
            faces.append(Face(tuple(corners), normal, paint))
    return Solid(tuple(faces), (x - r, y - r, z - r), (x + r, y + r, z + r))


# ------------------------------------------------------------------------------------------------ furniture
# Local frame of a piece: x to the right for someone who faces it, y from the wall towards them, z up.


def shade(colour: Rgb, share: float) -> Rgb:
    """The colour made darker (share < 1) or lighter (share > 1, towards white)."""
    if share <= 1:
        return tuple(int(c * share) for c in colour)  # type: ignore[return-value]
    return tuple(int(c + (255 - c) * (share - 1)) for c in colour)  # type: ignore[return-value]


def legs(x0: float, x1: float, y0: float, y1: float, z: float, width: float, colour: Rgb) -> list[Solid]:
    return [
        box(x, x + width, y, y + width, 0, z, colour)
        for x in (x0, x1 - width)
        for y in (y0, y1 - width)
    ]  # fmt: skip


def sofa(width: float, c: Rgb) -> list[Solid]:
    h, arm = width / 2, 0.2
    inner = h - arm
    seats = 1 if width < 1.4 else 2
    step = 2 * inner / seats
    solids = legs(-h + 0.04, h - 0.04, 0.06, 0.82, 0.1, 0.07, DARK_WOOD)
    solids += [
        box(-h, h, 0, 0.22, 0.1, 0.9, shade(c, 0.92)),
        box(-h, -inner, 0.22, 0.9, 0.1, 0.64, shade(c, 0.96)),
        box(inner, h, 0.22, 0.9, 0.1, 0.64, shade(c, 0.96)),
        box(-inner, inner, 0.22, 0.86, 0.1, 0.28, shade(c, 0.82)),
    ]
    for i in range(seats):
        a = -inner + i * step
        solids.append(box(a + 0.012, a + step - 0.012, 0.36, 0.9, 0.28, 0.46, c))
        solids.append(box(a + 0.012, a + step - 0.012, 0.22, 0.36, 0.28, 0.82, shade(c, 1.08)))
    return solids


def bed(c: Rgb) -> list[Solid]:
    h, length = 0.8, 1.95
    return [
        *legs(-h, h, 0.1, length, 0.16, 0.09, DARK_WOOD),
        box(-h - 0.04, h + 0.04, 0, 0.09, 0, 1.12, WOOD, front=[(0.05, 0.95, 0.55, 0.93, shade(WOOD, 1.18))]),
        box(-h, h, 0.09, length, 0.16, 0.32, DARK_WOOD),
        box(-h + 0.03, h - 0.03, 0.09, 0.66, 0.32, 0.52, COLOURS["white"]),
        box(-h, h, 0.66, length + 0.02, 0.2 + 0.12, 0.56, c),
        box(-0.68, -0.06, 0.16, 0.54, 0.52, 0.68, shade(COLOURS["white"], 0.97)),
        box(0.06, 0.68, 0.16, 0.54, 0.52, 0.68, shade(COLOURS["white"], 0.97)),
    ]


def table(width: float, deep: float, height: float, c: Rgb, round_top: bool) -> list[Solid]:
    """A table around the origin."""
    if round_top:
        r = width / 2
        return [
            cone(0, 0, 0.3, 0.26, 0, 0.05, shade(c, 0.8)),
            cone(0, 0, 0.06, 0.06, 0.05, height - 0.06, shade(c, 0.8), sides=8),
            cone(0, 0, r, r, height - 0.06, height, c, sides=18),
        ]
    h, d = width / 2, deep / 2
    return [
        *legs(-h + 0.04, h - 0.04, -d + 0.04, d - 0.04, height - 0.06, 0.08, shade(c, 0.8)),
        box(-h, h, -d, d, height - 0.06, height, c),
    ]


def chair(c: Rgb) -> list[Solid]:
    """A chair around the origin whose back is at low y."""
    s = 0.22
    return [
        *legs(-s, s, -s, s, 0.43, 0.05, DARK_WOOD),
        box(-s, s, -s, s, 0.43, 0.49, c),
        box(-s, s, -s, -s + 0.05, 0.49, 0.98, c, front=[(0.15, 0.85, 0.12, 0.3, shade(c, 0.72))]),
    ]


def desk(c: Rgb) -> list[Solid]:
    return [
        box(-0.7, -0.66, 0.02, 0.68, 0, 0.72, shade(c, 0.85)),
        box(0.28, 0.7, 0.02, 0.68, 0, 0.72, shade(c, 0.85),
            front=[(0.08, 0.92, v, v + 0.27, shade(c, 0.97)) for v in (0.06, 0.37, 0.68)]),
        box(-0.72, 0.72, 0, 0.72, 0.72, 0.77, c),
    ]  # fmt: skip


def monitor() -> list[Solid]:
    dark = (40, 42, 46)
    return [
        box(-0.44, -0.16, 0.08, 0.26, 0.77, 0.79, dark),
        box(-0.33, -0.27, 0.14, 0.18, 0.79, 0.9, dark),
        box(-0.64, 0.04, 0.12, 0.17, 0.9, 1.32, dark, front=[(0.05, 0.95, 0.08, 0.93, (92, 150, 190))]),
    ]


def bookshelf(c: Rgb, rng: Draws) -> list[Solid]:
    h, d, top, floors = 0.6, 0.34, 1.9, 4
    solids = [
        box(-h, h, 0, 0.03, 0, top, shade(c, 0.62)),
        box(-h, -h + 0.06, 0.03, d, 0, top, c),
        box(h - 0.06, h, 0.03, d, 0, top, c),
    ]
    for i in range(floors + 1):
        z = i * (top - 0.05) / floors
        solids.append(box(-h + 0.06, h - 0.06, 0.03, d, z, z + 0.05, c))
    spines = [(196, 70, 60), (64, 110, 170), (230, 200, 90), (90, 150, 100), (220, 220, 210), (120, 90, 140)]
    for i in range(floors):
        z = i * (top - 0.05) / floors + 0.05
        wide = (2 * h - 0.16) * (0.55 + 0.4 * rng.random())
        count = 6
        tall = 0.27 + 0.08 * rng.random()
        start = int(rng.random() * 6)
        front = [(k / count + 0.01, (k + 1) / count - 0.01, 0.0, 0.8 + 0.2 * ((k * 5 + start) % 3) / 2,
                  spines[(k * 5 + start) % 6]) for k in range(count)]  # fmt: skip
        solids.append(box(-h + 0.08, -h + 0.08 + wide, 0.03, d - 0.07, z, z + tall, (70, 60, 55), front=front))
    return solids


def drawers(width: float, deep: float, height: float, c: Rgb, rows: int, columns: int) -> list[Solid]:
    """A chest with rows x columns of drawers or doors and their knobs."""
    h = width / 2
    front: list[tuple[float, float, float, float, Rgb]] = []
    for i in range(columns):
        for j in range(rows):
            u0, u1 = i / columns + 0.03, (i + 1) / columns - 0.03
            v0, v1 = j / rows + 0.035, (j + 1) / rows - 0.035
            front.append((u0, u1, v0, v1, shade(c, 1.12)))
            middle = u0 + (u1 - u0) * (0.86 if rows == 1 and i % 2 == 0 else 0.14 if rows == 1 else 0.5)
            level = (v0 + v1) / 2
            front.append((middle - 0.03, middle + 0.03, level - 0.05 / height / 2, level + 0.05 / height / 2,
                          shade(c, 0.45)))  # fmt: skip
    return [
        box(-h + 0.04, h - 0.04, 0.02, deep - 0.05, 0, 0.08, shade(c, 0.5)),
        box(-h, h, 0, deep, 0.08, height - 0.04, shade(c, 0.9), front=front),
        box(-h - 0.02, h + 0.02, 0, deep + 0.02, height - 0.04, height, c),
    ]


def piano(c: Rgb) -> list[Solid]:
    keys = [(i / 14 + 0.004, (i + 1) / 14 - 0.004, 0.0, 1.0, (248, 248, 244)) for i in range(14)]
    return [
        box(-0.72, 0.72, 0, 0.3, 0, 1.2, c, front=[(0.06, 0.94, 0.68, 0.95, shade(c, 1.15))]),
        box(-0.72, -0.64, 0.3, 0.62, 0, 0.62, shade(c, 0.9)),
        box(0.64, 0.72, 0.3, 0.62, 0, 0.62, shade(c, 0.9)),
        box(-0.72, 0.72, 0.3, 0.64, 0.62, 0.7, c),
        box(-0.66, 0.66, 0.46, 0.63, 0.7, 0.725, (248, 248, 244), front=keys, top=(248, 248, 244)),
        box(-0.66, 0.66, 0.4, 0.46, 0.7, 0.74, (24, 24, 26)),
    ]


def television(on: bool) -> list[Solid]:
    dark = (26, 27, 30)
    picture: list[tuple[float, float, float, float, Rgb]] = [(0.03, 0.97, 0.05, 0.95, (34, 36, 42))]
    if on:
        picture = [
            (0.03, 0.97, 0.05, 0.95, (96, 190, 250)),
            (0.03, 0.97, 0.05, 0.38, (110, 210, 90)),
            (0.2, 0.42, 0.3, 0.62, (250, 240, 120)),
            (0.62, 0.72, 0.18, 0.56, (250, 80, 70)),
        ]
    screen = box(-0.64, 0.64, 0.16, 0.22, 0.58, 1.32, dark)
    painted = box(-0.64, 0.64, 0.16, 0.22, 0.58, 1.32, dark, glow=on, front=picture)
    return [
        box(-0.22, 0.22, 0.1, 0.32, 0.5, 0.53, dark),
        box(-0.04, 0.04, 0.16, 0.22, 0.53, 0.58, dark),
        Solid(screen.faces + painted.faces[6:], screen.low, screen.high),
    ]


def floor_lamp(on: bool) -> list[Solid]:
    paint: Rgb = (255, 240, 150) if on else (132, 136, 148)
    return [
        cone(0, 0.28, 0.2, 0.18, 0, 0.05, (60, 60, 64)),
        cone(0, 0.28, 0.028, 0.028, 0.05, 1.2, (60, 60, 64), sides=6),
        cone(0, 0.28, 0.3, 0.18, 1.2, 1.66, paint, glow=on, sides=14),
    ]


def plant(c: Rgb) -> list[Solid]:
    leaf, light = (52, 128, 56), (84, 160, 74)
    return [
        cone(0, 0.32, 0.17, 0.24, 0, 0.42, c),
        cone(0, 0.32, 0.035, 0.03, 0.42, 0.62, (96, 72, 44), sides=6),
        cone(0, 0.32, 0.2, 0.32, 0.62, 0.84, leaf, sides=7),
        cone(0, 0.32, 0.32, 0.22, 0.84, 1.08, light, sides=7),
        cone(0, 0.32, 0.24, 0.04, 1.08, 1.42, leaf, sides=7),
    ]


def fridge() -> list[Solid]:
    c = (222, 226, 230)
    return [
        box(-0.38, 0.38, 0, 0.68, 0.04, 1.85, c,
            front=[(0.03, 0.97, 0.02, 0.64, shade(c, 0.97)), (0.03, 0.97, 0.66, 0.98, shade(c, 0.97)),
                   (0.08, 0.13, 0.36, 0.6, (90, 92, 98)), (0.08, 0.13, 0.7, 0.86, (90, 92, 98)),
                   (0.55, 0.75, 0.76, 0.86, (240, 200, 80))]),
    ]  # fmt: skip


def stove() -> list[Solid]:
    c = (200, 204, 208)
    return [
        box(-0.34, 0.34, 0, 0.64, 0, 0.86, c,
            front=[(0.1, 0.9, 0.12, 0.66, (40, 42, 46)), (0.12, 0.88, 0.7, 0.74, (90, 92, 98))]
            + [(u, u + 0.09, 0.82, 0.93, (60, 62, 66)) for u in (0.12, 0.34, 0.56, 0.78)]),
        box(-0.34, 0.34, 0, 0.64, 0.86, 0.9, (40, 42, 46)),
        box(-0.34, 0.34, 0, 0.05, 0.9, 1.06, c),
    ]  # fmt: skip


def counter(c: Rgb) -> list[Solid]:
    steel = (196, 200, 206)
    return [
        *drawers(1.4, 0.62, 0.9, c, 1, 3),
        box(-0.6, 0.06, 0.14, 0.52, 0.9, 0.93, steel, top=(150, 154, 160)),
        box(-0.3, -0.24, 0.05, 0.1, 0.9, 1.2, steel),
        box(-0.3, -0.24, 0.1, 0.3, 1.15, 1.2, steel),
    ]


def bathtub() -> list[Solid]:
    c = (240, 242, 244)
    return [
        box(-0.8, 0.8, 0, 0.72, 0, 0.5, c),
        box(-0.8, 0.8, 0, 0.1, 0.5, 0.58, c),
        box(-0.8, 0.8, 0.62, 0.72, 0.5, 0.58, c),
        box(-0.8, -0.7, 0.1, 0.62, 0.5, 0.58, c),
        box(0.7, 0.8, 0.1, 0.62, 0.5, 0.58, c),
        box(-0.7, 0.7, 0.1, 0.62, 0.5, 0.53, (120, 190, 220)),
    ]


def picture_frame(c: Rgb) -> list[Solid]:
    return [
        box(-0.42, 0.42, 0, 0.04, 1.36, 2.0, DARK_WOOD,
            front=[(0.07, 0.93, 0.09, 0.91, (236, 230, 214)), (0.14, 0.86, 0.18, 0.55, shade(c, 0.85)),
                   (0.14, 0.86, 0.55, 0.82, shade(c, 1.45)), (0.58, 0.74, 0.6, 0.74, (250, 220, 110))]),
    ]  # fmt: skip


def clock() -> list[Solid]:
    r, z = 0.27, 1.72
    rim = [(r * math.cos(2 * math.pi * i / 16), z + r * math.sin(2 * math.pi * i / 16)) for i in range(16)]
    front = [(0.16, 0.84, 0.16, 0.84, (250, 250, 246))]
    plate = box(-r, r, 0, 0.04, z - r, z + r, (50, 50, 54), front=front)
    face = Face(tuple((0.8 * x, 0.05, z + 0.8 * (y - z)) for x, y in rim), (0, 1, 0), (250, 250, 246))
    ring = Face(tuple((x, 0.05, y) for x, y in rim), (0, 1, 0), (50, 50, 54))
    hands = []
    for x0, x1, z0, z1 in ((-0.014, 0.014, 0.0, 0.18), (0.0, 0.13, -0.016, 0.016)):  # three o'clock
        corners = ((x0, 0.05, z + z0), (x1, 0.05, z + z0), (x1, 0.05, z + z1), (x0, 0.05, z + z1))
        hands.append(Face(corners, (0, 1, 0), (20, 20, 20)))
    return [Solid((ring, face, *hands), plate.low, (r, 0.05, z + r))]


def mirror() -> list[Solid]:
    return [
        box(-0.34, 0.34, 0, 0.04, 0.95, 2.05, (214, 178, 84),
            front=[(0.1, 0.9, 0.06, 0.94, (196, 214, 222)), (0.2, 0.34, 0.4, 0.86, (226, 238, 242))]),
    ]  # fmt: skip


def window(day: bool) -> list[Solid]:
    sky: Rgb = (150, 206, 252) if day else (18, 22, 52)
    low: Rgb = (120, 178, 104) if day else (12, 16, 34)
    frame = (246, 246, 242)
    pane = [(0.05, 0.95, 0.06, 0.94, sky), (0.05, 0.95, 0.06, 0.3, low)]
    pane.append((0.68, 0.8, 0.68, 0.82, (255, 240, 150)) if day else (0.66, 0.8, 0.68, 0.84, (236, 236, 220)))
    pane += [(0.48, 0.52, 0.05, 0.95, frame), (0.05, 0.95, 0.5, 0.54, frame)]
    base = box(-0.6, 0.6, 0, 0.03, 1.0, 2.08, frame)
    lit = box(-0.6, 0.6, 0, 0.03, 1.0, 2.08, frame, glow=True, front=pane)
    return [Solid(base.faces + lit.faces[6:], base.low, base.high), box(-0.68, 0.68, 0, 0.04, 0.94, 1.0, frame)]


def curtains(c: Rgb, closed: bool) -> list[Solid]:
    solids = [box(-0.98, 0.98, 0.06, 0.1, 2.16, 2.2, DARK_WOOD)]
    strips = [(-0.94 + i * 0.188, -0.94 + (i + 1) * 0.188) for i in range(10)]
    if not closed:
        strips = strips[:2] + strips[-2:]
    for i, (a, b) in enumerate(strips):
        solids.append(box(a, b, 0.04, 0.1 + 0.03 * (i % 2), 0.78, 2.14, c if i % 2 else shade(c, 0.86)))
    return solids


def door_leaf(c: Rgb) -> list[Solid]:
    panel = shade(c, 0.82)
    return [
        box(0, 0.94, 0, 0.05, 0, 2.04, c,
            front=[(0.14, 0.86, 0.08, 0.42, panel), (0.14, 0.86, 0.52, 0.93, panel),
                   (0.86, 0.95, 0.45, 0.49, (226, 190, 90))]),
    ]  # fmt: skip


def teddy() -> list[Solid]:
    c, pale = (168, 116, 66), (226, 190, 140)
    return [
        box(-0.16, -0.03, 0.19, 0.3, 0.0, 0.13, shade(c, 1.1), front=[(0.2, 0.8, 0.2, 0.8, pale)]),
        box(0.03, 0.16, 0.19, 0.3, 0.0, 0.13, shade(c, 1.1), front=[(0.2, 0.8, 0.2, 0.8, pale)]),
        ball(0, 0, 0.19, 0.19, c),
        ball(0, 0, 0.52, 0.14, c),
        box(-0.055, 0.055, 0.14, 0.18, 0.44, 0.53, pale, front=[(0.3, 0.7, 0.6, 0.95, (40, 30, 26))]),
        ball(-0.075, 0, 0.705, 0.045, c),
        ball(0.075, 0, 0.705, 0.045, c),
    ]


def backpack(c: Rgb) -> list[Solid]:
    return [
        box(-0.19, 0.19, -0.13, 0.11, 0, 0.5, c, front=[(0.1, 0.9, 0.7, 0.74, shade(c, 0.5))]),
        box(-0.14, 0.14, 0.11, 0.19, 0.04, 0.28, shade(c, 0.78), front=[(0.08, 0.92, 0.72, 0.8, shade(c, 0.45))]),
    ]


def laptop() -> list[Solid]:
    c = (176, 180, 186)
    return [
        box(-0.24, 0.24, -0.14, 0.2, 0, 0.03, c, top=(96, 98, 104)),
        box(-0.24, 0.24, -0.17, -0.14, 0.0, 0.36, c, front=[(0.05, 0.95, 0.12, 0.95, (70, 140, 220))]),
    ]


def vase(c: Rgb) -> list[Solid]:
    return [
        cone(0, 0, 0.09, 0.13, 0, 0.14, c, sides=10),
        cone(0, 0, 0.13, 0.06, 0.14, 0.3, c, sides=10),
        cone(0, 0, 0.1, 0.19, 0.3, 0.42, (74, 146, 70), sides=7),
        ball(-0.11, 0, 0.49, 0.07, (240, 90, 120)),
        ball(0.1, 0.04, 0.51, 0.07, (250, 210, 80)),
    ]


def carton() -> list[Solid]:
    c = (196, 152, 98)
    return [box(-0.25, 0.25, -0.2, 0.2, 0, 0.4, c, front=[(0.44, 0.56, 0.0, 1.0, (226, 206, 160))], top=shade(c, 1.15))]


def toy_ball(c: Rgb) -> list[Solid]:
    return [ball(0, 0, 0.21, 0.21, c, band=(250, 250, 246))]


def furniture(name: str, c: Rgb, rng: Draws, on: bool) -> list[Solid]:
    """The piece called `name` in colour c; `on` lights the lamp.

    Raises:
        KeyError: no such piece.
    """
    makers: dict[str, Callable[[], list[Solid]]] = {
        "sofa": lambda: sofa(2.0, c),
        "armchair": lambda: sofa(1.0, c),
        "bed": lambda: bed(c),
        "desk": lambda: desk(c) + monitor(),
        "bookshelf": lambda: bookshelf(c, rng),
        "wardrobe": lambda: drawers(1.26, 0.58, 2.0, c, 1, 2),
        "cabinet": lambda: drawers(1.1, 0.43, 1.1, c, 1, 2),
        "nightstand": lambda: drawers(0.48, 0.42, 0.55, c, 2, 1),
        "piano": lambda: piano(c),
        "tv stand": lambda: drawers(1.5, 0.45, 0.5, c, 1, 3),
        "counter": lambda: counter(c),
        "fridge": fridge,
        "stove": stove,
        "bathtub": bathtub,
        "lamp": lambda: floor_lamp(on),
        "plant": lambda: plant(c),
    }
    return makers[name]()


def small_thing(name: str, c: Rgb) -> list[Solid]:
    """The small thing called `name`; a ball, backpack or vase in colour c."""
    makers: dict[str, Callable[[], list[Solid]]] = {
        "ball": lambda: toy_ball(c),
        "teddy bear": teddy,
        "backpack": lambda: backpack(c),
        "laptop": laptop,
        "vase": lambda: vase(c),
        "box": carton,
    }
    return makers[name]()
