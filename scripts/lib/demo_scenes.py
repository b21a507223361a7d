"""Rooms of the embedded demo: a seeded scene, a camera that walks through it, pictures in perspective, questions.

Everything is a pure function of the seed. Solids are convex (boxes, cones, low balls); a frame is painted back to
front with integer polygon filling, at twice the size and averaged down, so pixels do not depend on threads or SIMD.

    scene = make_scene(7)
    picture = render_frame(scene, 0.25, (320, 240))          # (240, 320, 3) uint8 RGB
    questions = make_questions(scene, 8, random.Random(7))   # Open-EQA style question, answer, category

Lengths are metres, z is up, the room spans x in [0, width] and y in [0, depth]; the door is in the wall y = 0.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from scripts.lib.demo_furniture import (
    COLOURED,
    COLOURS,
    SIZES,
    SURFACES,
    Draws,
    Face,
    Rgb,
    Solid,
    box,
    chair,
    clock,
    cone,
    curtains,
    door_leaf,
    furniture,
    mirror,
    picture_frame,
    shade,
    small_thing,
    table,
    television,
    window,
)

CATEGORIES = (  # the seven of open-eqa-v0.json, spelled as there
    "object recognition",
    "attribute recognition",
    "spatial understanding",
    "object state recognition",
    "functional reasoning",
    "world knowledge",
    "object localization",
)
WALL_COLOURS: dict[str, Rgb] = {  # paler than furniture, so that furniture stands out
    "white": (236, 234, 226),
    "blue": (168, 196, 226),
    "green": (178, 212, 178),
    "yellow": (240, 226, 164),
    "pink": (238, 196, 200),
    "gray": (130, 132, 138),
}
FLOORS: dict[str, tuple[str, ...]] = {  # materials and the colours that they come in
    "wood": ("brown",),
    "tile": ("white", "gray"),
    "carpet": ("blue", "green", "gray"),
}
FLOOR_COLOURS: dict[str, Rgb] = {
    "brown": (158, 108, 64),
    "white": (214, 214, 208),
    "gray": (122, 124, 128),
    "blue": (78, 96, 138),
    "green": (88, 120, 92),
}
CEILING: Rgb = (238, 238, 234)
WALL_HEIGHT = 2.5
EYE_HEIGHT = 1.5
HALF_FOV = math.tan(math.radians(41.0))  # 82 degrees across: a phone's wide lens, so that a 5 m room fits
OFF_WALL = 0.16  # furniture stands clear of curtains and sills
NEAR = 0.08  # nearest distance that is drawn
SUBPIXEL_BITS = 4  # fillConvexPoly takes fixed-point corners
ROOM_KINDS = ("living room", "bedroom", "dining room", "office", "kitchen")


# ------------------------------------------------------------------------------------------------ scenes


@dataclass(frozen=True)
class Thing:
    """One named piece in the room.

    name: as questions call it, e.g. "sofa"; unique in a scene but for "chair".
    colour: its colour's name, or "" where it has none worth asking.
    state: "on", "off", "open", "closed" or "".
    place: answer to "where is it", e.g. "on the table", or "".
    wall: 0 north, 1 east, 2 south, 3 west, -1 free in the room, -2 in the next room.
    """

    name: str
    solids: tuple[Solid, ...] = field(repr=False)
    axes: tuple[tuple[float, float], tuple[float, float]]  # local x and y in the world
    origin: tuple[float, float, float]
    colour: str = ""
    state: str = ""
    place: str = ""
    wall: int = -1
    along: float = 0.0  # position along its wall, growing to the right of someone who faces the wall
    flat: bool = False  # lies on the floor: drawn with it


@dataclass(frozen=True)
class Scene:
    """A furnished room; `path` is 0 for the first scan and 1 for a second walk through the same room."""

    seed: int
    kind: str
    width: float
    depth: float
    wall_colour: str
    floor_material: str
    floor_colour: str
    day: bool
    door_x: float
    door_open: bool
    next_room: str
    things: tuple[Thing, ...] = field(repr=False)
    path: int = 0

    def __hash__(self) -> int:
        return hash((self.seed, self.path))  # cheap: caches look a scene up at every frame

    def named(self, name: str) -> Thing | None:
        """The first piece of that name, or None."""
        return next((thing for thing in self.things if thing.name == name), None)


def second_scan(scene: Scene) -> Scene:
    """The same room, walked through another way."""
    return replace(scene, path=1 - scene.path)


def _pick(rng: Draws, options: Sequence[Any]) -> Any:
    return options[int(rng.random() * len(options))]


def _shuffled(rng: Draws, options: Sequence[Any]) -> list[Any]:
    keyed = [(rng.random(), i) for i in range(len(options))]
    return [options[i] for _, i in sorted(keyed)]


def _between(rng: Draws, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


_FACING = ((0.0, 1.0), (1.0, 0.0), (0.0, -1.0), (-1.0, 0.0))  # the way one looks at wall 0..3


def _on_wall(width: float, depth: float, wall: int, along: float, gap: float = 0.0) -> tuple[Any, Any]:
    """Axes and origin of a piece standing at a wall, `along` metres from the wall's left end."""
    fx, fy = _FACING[wall]
    right, inward = (fy, -fx), (-fx, -fy)
    left_end = ((0.0, depth), (width, depth), (width, 0.0), (0.0, 0.0))[wall]
    origin = (
        left_end[0] + right[0] * along + inward[0] * gap,
        left_end[1] + right[1] * along + inward[1] * gap,
        0.0,
    )
    return (right, inward), origin


_MAINS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # always there, and a pool to draw from
    "living room": (("sofa", "tv stand"), ("bookshelf", "cabinet", "piano", "armchair")),
    "bedroom": (("bed", "wardrobe"), ("cabinet", "desk", "bookshelf", "armchair", "tv stand")),
    "dining room": (("cabinet",), ("sofa", "piano", "bookshelf", "tv stand", "armchair")),
    "office": (("desk", "bookshelf"), ("cabinet", "sofa", "armchair", "piano")),
    "kitchen": (("counter",), ("cabinet", "bookshelf", "armchair", "tv stand")),
}


def make_scene(seed: int) -> Scene:
    """A furnished room drawn from `seed` (any integer >= 0); equal seeds give equal scenes."""
    rng = random.Random(seed * 2654435761 % 2**63)
    kind = _pick(rng, ROOM_KINDS)
    width, depth = _between(rng, 4.8, 5.4), _between(rng, 4.7, 5.2)
    wall_colour = _pick(rng, list(WALL_COLOURS))
    floor_material = _pick(rng, list(FLOORS))
    floor_colour = _pick(rng, FLOORS[floor_material])
    day, lamp_on, door_open, curtain_closed, tv_on = (rng.random() < 0.5 for _ in range(5))
    palette = _shuffled(rng, [name for name in COLOURS if name != wall_colour])
    spare = iter(palette * 3)
    colour_of: dict[str, str] = {}

    def paint(name: str) -> str:
        return colour_of.setdefault(name, next(spare))

    fixed, pool = _MAINS[kind]
    pool_drawn = _shuffled(rng, pool)
    mains = list(fixed) + pool_drawn[: 4 - len(fixed)]
    south = next((m for m in reversed(mains) if SIZES[m][0] <= 1.3 and m not in ("bed", "armchair")), None)
    others = [m for m in mains if m != south][:3]
    walls: dict[int, list[str]] = {}
    order = _shuffled(rng, (1, 3))
    if kind in ("bedroom", "kitchen"):
        walls[0] = [others[0]]
        walls[order[0]], walls[order[1]] = [others[1]], [others[2]] if len(others) > 2 else []
    else:
        sides = _shuffled(rng, (0, 1, 3))
        for side, main in zip(sides, others, strict=False):
            walls[side] = [main]
    for side in (0, 1, 3):
        walls.setdefault(side, [])
    walls[2] = [south] if south else []
    if kind == "kitchen":
        row = ["fridge", "counter", "stove"]
        walls[0] = row if rng.random() < 0.5 else row[::-1]
    flanks = ["lamp"] + (["plant"] if rng.random() < 0.7 else [])
    if kind == "bedroom":
        flanks.append("nightstand")
    hosts = _shuffled(rng, [side for side in (0, 1, 3) if len(walls[side]) < 3])
    if kind == "bedroom":  # the nightstand belongs to the bed
        walls[0] = ["nightstand", *walls[0]] if rng.random() < 0.5 else [*walls[0], "nightstand"]
        flanks.remove("nightstand")
    for i, flank in enumerate(_shuffled(rng, flanks)):
        side = hosts[i % len(hosts)]
        walls[side] = [flank, *walls[side]] if rng.random() < 0.5 else [*walls[side], flank]

    things: list[Thing] = []
    lamp_state = "on" if lamp_on else "off"
    door_x = _between(rng, 1.0, 1.4) if rng.random() < 0.5 else width - _between(rng, 1.0, 1.4)
    reach_of = {name: size[1] for name, size in SIZES.items()} | {"bed": 0.0, "desk": 1.3}  # a chair at the desk
    north_reach = max([reach_of[n] for n in walls[0]] or [0.0])
    spots: list[tuple[float, float]] = []  # free places of a wall for pictures: (wall, along)
    for side in (0, 1, 2, 3):
        length = (width, depth, width, depth)[side]
        start, stop = 0.12, length - 0.12
        if side == 1:
            start, stop = north_reach + OFF_WALL + 0.1, length - 0.9
        elif side == 3:
            start, stop = 0.9, length - north_reach - OFF_WALL - 0.1
        elif side == 2:  # one faces south: left end is x = width
            door_along = width - door_x
            start, stop = (door_along + 1.05, stop) if door_along < width / 2 else (start, door_along - 1.05)
        row = walls[side]
        while row and sum(SIZES[n][0] for n in row) + 0.1 * (len(row) - 1) > stop - start:
            row = [n for n in row if n not in ("plant", "lamp")] if row[-1:] != row[:1] and len(row) > 2 else row[:-1]
        free = stop - start - sum(SIZES[n][0] for n in row)
        gap = min(0.35, free / (len(row) + 1)) if row else 0.0
        cursor = start + (free - gap * (len(row) - 1)) * _between(rng, 0.3, 0.7)
        if "bed" in row:  # in the middle, so that it stays clear of what stands at the side walls
            gap = 0.1
            cursor = length / 2 - SIZES["bed"][0] / 2 - sum(SIZES[n][0] + gap for n in row[: row.index("bed")])
        for name in row:
            along = cursor + SIZES[name][0] / 2
            cursor += SIZES[name][0] + gap
            axes, origin = _on_wall(width, depth, side, along, OFF_WALL)
            state = lamp_state if name == "lamp" else ""
            colour = paint(name) if name in COLOURED else ""
            rgb = COLOURS[colour] if colour else (184, 104, 70)
            solids = furniture(name, rgb, rng, state == "on")
            things.append(Thing(name, tuple(solids), axes, origin, colour, state, "", side, along))
            if name == "tv stand":
                tv_state = "on" if tv_on else "off"
                tv = tuple(television(tv_on))
                things.append(Thing("TV", tv, axes, origin, "", tv_state, "on the tv stand", side, along))
            if name == "desk":
                x, y = origin[0] + axes[1][0] * 1.0, origin[1] + axes[1][1] * 1.0
                back = ((axes[0][0], axes[0][1]), (-axes[1][0], -axes[1][1]))
                seat = chair(COLOURS[paint("chair")])
                things.append(Thing("chair", tuple(seat), back, (x, y, 0.0), paint("chair"), "", "", -1))

    # what stands in the middle
    cx, cy = width / 2, depth / 2
    still = ((1.0, 0.0), (0.0, 1.0))
    round_top = rng.random() < 0.5
    if kind in ("dining room", "kitchen"):
        big = kind == "dining room"
        top = paint("table")
        long, deep = (1.5, 0.9) if big and not round_top else (1.05, 1.05) if not round_top else (1.15, 1.15)
        solids = table(long, deep, 0.75, COLOURS[top], round_top)
        things.append(Thing("table", tuple(solids), still, (cx, cy, 0.0), top, "round" if round_top else "square"))
        seats = 1 + int(rng.random() * 4)
        seat_colour = paint("chair")
        for side in _shuffled(rng, (0, 1, 2, 3))[:seats]:
            fx, fy = _FACING[side]  # where the chair stands, seen from the table
            reach = (long if fx else deep) / 2 + 0.3
            axes = ((fy, -fx), (-fx, -fy))
            at = (cx + fx * reach, cy + fy * reach, 0.0)
            things.append(Thing("chair", tuple(chair(COLOURS[seat_colour])), axes, at, seat_colour))
    else:
        rug = paint("rug")
        rug_y = cy if kind != "bedroom" else cy - 0.7
        size = (1.1, 0.8)
        solids = [box(-size[0], size[0], -size[1], size[1], 0, 0.012, shade(COLOURS[rug], 0.9), top=COLOURS[rug])]
        if round_top:
            solids = [cone(0, 0, 1.0, 1.0, 0, 0.012, COLOURS[rug], sides=20)]
        shape = "round" if round_top else "square"
        things.append(Thing("rug", tuple(solids), still, (cx, rug_y, 0.0), rug, shape, "on the floor", flat=True))
        if kind == "living room":
            top = paint("table")
            solids = table(0.95, 0.6, 0.42, COLOURS[top], rng.random() < 0.5)
            things.append(Thing("table", tuple(solids), still, (cx, rug_y, 0.012), top, "", "on the rug"))

    # wall pieces: the window where nothing tall stands, then one picture, clock or mirror
    tall = ("wardrobe", "bookshelf", "fridge", "lamp", "plant", "TV", "tv stand", "piano", "cabinet", "desk")
    bands: list[tuple[int, float, float]] = []
    for side in (0, 1, 3):
        length = width if side in (0, 2) else depth
        taken = sorted((t.along - SIZES[t.name][0] / 2 - 0.05, t.along + SIZES[t.name][0] / 2 + 0.05)
                       for t in things if t.wall == side and t.name in tall and t.name in SIZES)  # fmt: skip
        cursor = 0.3
        for low, high in [*taken, (length - 0.3, length)]:
            if low - cursor > 0:
                bands.append((side, cursor, low))
            cursor = max(cursor, high)
    bands.sort(key=lambda band: (band[1] - band[2], band[0]))
    curtain = paint("curtains")
    for i, (side, low, high) in enumerate(bands):
        middle = (low + high) / 2
        axes, origin = _on_wall(width, depth, side, middle)
        if i == 0 and high - low >= 2.0:
            things.append(Thing("window", tuple(window(day)), axes, origin, "", "", "", side, middle))
            state = "closed" if curtain_closed else "open"
            cloth = tuple(curtains(COLOURS[curtain], curtain_closed))
            things.append(Thing("curtains", cloth, axes, origin, curtain, state, "", side, middle))
        elif high - low >= 0.9 and len(spots) < 1:
            what = _pick(rng, ("picture", "clock", "mirror"))
            maker = {"picture": lambda: picture_frame(COLOURS[_pick(rng, palette)]), "clock": clock, "mirror": mirror}
            things.append(Thing(what, tuple(maker[what]()), axes, origin, "", "", "on the wall", side, middle))
            spots.append((side, middle))

    door_colour = paint("door")
    leaf = tuple(door_leaf(COLOURS[door_colour]))
    if door_open:
        away = 1.0 if door_x > width / 2 else -1.0  # hinged on the side of the near corner
        swing = math.radians(100.0)
        axes = ((-away * math.cos(swing), math.sin(swing)), (-away * math.sin(swing), -math.cos(swing)))
        things.append(Thing("door", leaf, axes, (door_x + away * 0.47, 0.02, 0.0), door_colour, "open", "", 2))
    else:
        leaf_axes = ((-1.0, 0.0), (0.0, 1.0))
        things.append(Thing("door", leaf, leaf_axes, (door_x + 0.47, -0.06, 0.0), door_colour, "closed", "", 2))

    # two small things, on a piece or on the floor
    holders = [t for t in things if t.name in SURFACES]
    holders += [t for t in things if t.name == "table"]
    items = _shuffled(rng, ("ball", "teddy bear", "backpack", "laptop", "vase", "box"))[:2]
    places: list[Thing | None] = _shuffled(rng, holders)[:2]
    if len(places) < 2 or rng.random() < 0.25:
        places = [None, *places]
    for item, holder in zip(items, places, strict=False):
        pigment = paint(item) if item in ("ball", "backpack", "vase") else "white"
        colour = pigment if item in ("ball", "backpack") else ""  # flowers hide the vase: nobody asks for its colour
        solids = tuple(small_thing(item, COLOURS[pigment]))
        if holder is None:
            rug_thing = next((t for t in things if t.name == "rug"), None)
            at = (cx + _between(rng, -0.4, 0.4), 1.0, 0.0)
            if rug_thing is not None:
                aside = (0.78 if rng.random() < 0.5 else -0.78) if kind == "living room" else 0.0
                at = (cx + aside, rug_thing.origin[1], 0.014)
            things.append(Thing(item, solids, still, at, colour, "", "on the rug" if rug_thing else "on the floor"))
            continue
        x, y, z = SURFACES.get(holder.name, (0.0, 0.0, 0.0))
        if holder.name == "table":
            z = holder.solids[-1].high[2] + holder.origin[2]
        (ax, ay), (bx, by) = holder.axes
        at = (holder.origin[0] + ax * x + bx * y, holder.origin[1] + ay * x + by * y, z + 0.002)
        things.append(Thing(item, solids, holder.axes, at, colour, "", f"on the {holder.name}"))

    next_room = _pick(rng, [name for name in ("bathroom", "kitchen", "bedroom") if name != kind])
    pieces = {"bathroom": ("bathtub",), "kitchen": ("stove", "fridge"), "bedroom": ("bed",)}[next_room]
    for i, piece in enumerate(pieces):
        solids = furniture(piece, (196, 60, 60), rng, False)
        x = door_x - (0.4 if len(pieces) > 1 else 0.0) + 0.85 * i
        at = (x, -3.1, 0.0)
        things.append(Thing(f"{piece} next door", tuple(solids), ((-1.0, 0.0), (0.0, 1.0)), at, wall=-2))
    return Scene(seed, kind, width, depth, wall_colour, floor_material, floor_colour, day, door_x, door_open, next_room,
                 tuple(things))  # fmt: skip


# ------------------------------------------------------------------------------------------------ camera


def camera(scene: Scene, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Where the camera is and how it looks at t in [0, 1].

    Returns:
        position (3,) and a (3, 3) matrix whose rows are the picture's right, down and forward in the world.
    """
    rng = random.Random(scene.seed * 7919 + 13)
    turn = 1.0 if rng.random() < 0.5 else -1.0
    if scene.path:
        t, turn = 1.0 - t, -turn
    front = 2.0 if scene.kind == "bedroom" else 0.75  # the bed keeps the walk off the north
    cx, cy = scene.width / 2, (scene.depth - front + 0.75) / 2
    rx, ry = scene.width / 2 - 1.05, (scene.depth - front - 0.75) / 2 - 0.25
    walk_in = 0.1
    moved = max(0.0, (t - walk_in) / (1 - walk_in))
    angle = -math.pi / 2 + turn * math.radians(325.0) * moved
    x, y = cx + rx * math.cos(angle), cy + ry * math.sin(angle)
    if t < walk_in:
        share = t / walk_in
        share = share * share * (3 - 2 * share)
        gate = (scene.door_x, 0.12 if scene.door_open else 0.5)
        x, y = gate[0] + (x - gate[0]) * share, gate[1] + (y - gate[1]) * share
    yaw = angle + math.pi + math.radians(4.0) * math.sin(9.0 * t)  # across the room
    pitch = math.radians(-13.0)
    z = EYE_HEIGHT + 0.02 * math.sin(23.0 * t)
    forward = np.array([math.cos(yaw) * math.cos(pitch), math.sin(yaw) * math.cos(pitch), math.sin(pitch)])
    right = np.array([math.sin(yaw), -math.cos(yaw), 0.0])
    down = np.cross(forward, right)
    return np.array([x, y, z]), np.stack([right, down, forward])


# ------------------------------------------------------------------------------------------------ drawing


@dataclass(frozen=True)
class _Mesh:
    """All faces of a scene as arrays; `ids` name the piece for share_of()."""

    points: np.ndarray  # (n, 3)
    starts: np.ndarray  # (f + 1,)
    normals: np.ndarray  # (f, 3)
    offsets: np.ndarray  # (f,) plane: normal . p
    rgb: list[Rgb]
    ids: list[int]
    shells: tuple[list[int], list[int], list[int]]  # next room, this room, door frame with a closed door
    groups: tuple[list[Any], list[Any]]  # per room and solid: (low, high, faces), bounds in the world
    shadows: list[np.ndarray]
    names: list[str]


def _grid(start: float, stop: float, step: float, cuts: Sequence[float] = ()) -> list[float]:
    count = max(1, round((stop - start) / step))
    lines = {round(start + (stop - start) * i / count, 6) for i in range(count + 1)}
    return sorted(lines | {round(c, 6) for c in cuts if start < c < stop})


def _shell_faces(scene: Scene, next_door: bool) -> list[tuple[Face, str]]:
    """Walls, floor and ceiling, cut small so that light can vary over them."""
    faces: list[tuple[Face, str]] = []
    paint = WALL_COLOURS[scene.wall_colour]
    if next_door:
        x0, x1, y0, y1 = scene.door_x - 1.7, scene.door_x + 1.7, -3.15, -0.12
        paint = {"bathroom": (176, 214, 222), "kitchen": (238, 222, 176), "bedroom": (222, 206, 226)}[scene.next_room]
    else:
        x0, x1, y0, y1 = 0.0, scene.width, 0.0, scene.depth
    h = WALL_HEIGHT
    gap = (scene.door_x - 0.47, scene.door_x + 0.47, 2.04)

    def upright(axis: int, at: float, low: float, high: float, normal: tuple[float, float, float], hole: bool) -> None:
        for a, b in _pairs(_grid(low, high, 0.36, gap[:2] if hole else ())):
            for c, d in _pairs(_grid(0.0, h, 0.36, (0.1, *((gap[2],) if hole else ())))):
                if hole and gap[0] - 1e-5 < a and b < gap[1] + 1e-5 and d < gap[2] + 1e-5:
                    continue
                corners = [(a, c), (b, c), (b, d), (a, d)]
                spots = tuple((u, at, v) if axis == 1 else (at, u, v) for u, v in corners)
                colour = (244, 243, 238) if d < 0.11 else paint
                faces.append((Face(spots, normal, colour), "wall"))

    upright(1, y1, x0, x1, (0, -1, 0), hole=next_door)
    upright(1, y0, x0, x1, (0, 1, 0), hole=not next_door)
    upright(0, x0, y0, y1, (1, 0, 0), hole=False)
    upright(0, x1, y0, y1, (-1, 0, 0), hole=False)
    for a, b in _pairs(_grid(x0, x1, 0.9)):
        for c, d in _pairs(_grid(y0, y1, 0.9)):
            faces.append((Face(((a, c, h), (b, c, h), (b, d, h), (a, d, h)), (0, 0, -1), CEILING), "ceiling"))
    base = FLOOR_COLOURS[scene.floor_colour] if not next_door else (150, 150, 150)
    material = scene.floor_material if not next_door else "tile"
    rng = random.Random(scene.seed + 101)
    if material == "wood":
        rows = _grid(y0, y1, 0.24)
        for i, (c, d) in enumerate(_pairs(rows)):
            cuts = [x0 + ((i * 0.47) % 1.3) + k * 1.3 for k in range(6)]
            for a, b in _pairs(sorted({x0, x1, *(k for k in cuts if x0 < k < x1)})):
                tone = shade(base, 0.9 + 0.2 * rng.random())
                faces.append((Face(((a, c, 0), (b, c, 0), (b, d, 0), (a, d, 0)), (0, 0, 1), tone), "floor"))
    else:
        step = 0.5
        for i, (a, b) in enumerate(_pairs(_grid(x0, x1, step))):
            for j, (c, d) in enumerate(_pairs(_grid(y0, y1, step))):
                tone = shade(base, 0.9) if material == "tile" and (i + j) % 2 else base
                faces.append((Face(((a, c, 0), (b, c, 0), (b, d, 0), (a, d, 0)), (0, 0, 1), tone), "floor"))
    return faces


def _frame_faces(scene: Scene) -> list[tuple[Face, str]]:
    """The thickness of the wall around the door: two jambs, lintel and sill."""
    white = (246, 245, 240)
    a, b, top = scene.door_x - 0.47, scene.door_x + 0.47, 2.04
    faces = []
    for x, n in ((a, 1), (b, -1)):
        faces.append((Face(((x, -0.12, 0), (x, 0, 0), (x, 0, top), (x, -0.12, top)), (n, 0, 0), white), "wall"))
    faces.append((Face(((a, -0.12, top), (b, -0.12, top), (b, 0, top), (a, 0, top)), (0, 0, -1), white), "wall"))
    faces.append((Face(((a, -0.12, 0), (b, -0.12, 0), (b, 0, 0), (a, 0, 0)), (0, 0, 1), (120, 90, 60)), "floor"))
    return faces


def _pairs(lines: Sequence[float]) -> list[tuple[float, float]]:
    return list(itertools.pairwise(lines))


def _place(thing: Thing, points: np.ndarray) -> np.ndarray:
    (ax, ay), (bx, by) = thing.axes
    turn = np.array([[ax, ay, 0.0], [bx, by, 0.0], [0.0, 0.0, 1.0]])
    return points @ turn + np.array(thing.origin)


def solid_bounds(thing: Thing) -> list[tuple[np.ndarray, np.ndarray]]:
    """Lowest and highest corner (3,) of each solid of a piece, in the room's frame."""
    bounds = []
    for solid in thing.solids:
        spans = list(zip(solid.low, solid.high, strict=True))
        world = _place(thing, np.array([(x, y, z) for x in spans[0] for y in spans[1] for z in spans[2]], float))
        bounds.append((world.min(0), world.max(0)))
    return bounds


@lru_cache(maxsize=4)
def _mesh(scene: Scene) -> _Mesh:
    points: list[np.ndarray] = []
    normals: list[np.ndarray] = []
    colours: list[Rgb] = []
    glows: list[bool] = []
    ids: list[int] = []
    names = ["", "wall", "floor", "ceiling"]

    def add(corners: np.ndarray, normal: np.ndarray, face: Face, ident: int) -> int:
        points.append(corners)
        normals.append(normal)
        colours.append(face.colour)
        glows.append(face.glow)
        ids.append(ident)
        return len(points) - 1

    shells: tuple[list[int], list[int], list[int]] = ([], [], [])
    groups: tuple[list[Any], list[Any]] = ([], [])
    next_door: list[int] = []
    for room in (0, 1, 2):
        if room == 0 and not scene.door_open:
            continue
        for face, name in _frame_faces(scene) if room == 2 else _shell_faces(scene, room == 0):
            corners, normal = np.array(face.corners, float), np.array(face.normal, float)
            index = add(corners, normal, face, names.index(name) if room == 1 else 0)
            shells[room].append(index)
            if room != 1:
                next_door.append(index)
    shadows: list[np.ndarray] = []
    for thing in scene.things:
        room = 0 if thing.wall == -2 else 1
        if room == 0 and not scene.door_open:
            continue
        if thing.name not in names:
            names.append(thing.name)
        ident = names.index(thing.name)
        (ax, ay), (bx, by) = thing.axes
        turn = np.array([[ax, ay, 0.0], [bx, by, 0.0], [0.0, 0.0, 1.0]])
        parts: list[list[int]] = []
        for solid in thing.solids:
            part = []
            for face in solid.faces:
                corners, normal = np.array(face.corners, float), np.array(face.normal, float)
                part.append(add(_place(thing, corners), normal @ turn, face, ident))
                if room == 0:
                    next_door.append(part[-1])
            parts.append(part)
        closed_door = thing.name == "door" and thing.state == "closed"
        if thing.flat or closed_door:
            shells[2 if closed_door else room].extend(i for part in parts for i in part)
            continue
        groups[room].extend((*box, part) for box, part in zip(solid_bounds(thing), parts, strict=True))
        low = np.array([solid.low for solid in thing.solids], float).min(0)
        high = np.array([solid.high for solid in thing.solids], float).max(0)
        if room == 1 and thing.origin[2] < 0.05 and low[2] < 0.3 and thing.name != "door":
            for grow in (0.14, 0.05):
                x0, x1, y0, y1 = low[0] - grow, high[0] + grow, low[1] - grow, high[1] + grow
                flat = _place(thing, np.array([(x0, y0, 0.0), (x1, y0, 0.0), (x1, y1, 0.0), (x0, y1, 0.0)]))
                flat[:, 0] = np.clip(flat[:, 0], 0.0, scene.width)
                flat[:, 1] = np.clip(flat[:, 1], 0.0, scene.depth)
                flat[:, 2] = 0.0
                shadows.append(flat)
    starts = np.concatenate([[0], np.cumsum([len(p) for p in points])])
    allp, alln = np.concatenate(points), np.stack(normals)
    centres = np.stack([p.mean(0) for p in points])
    rgb = _light(scene, centres, alln, np.array(colours, float), np.array(glows), np.array(next_door, int))
    offsets = np.einsum("ij,ij->i", alln, centres)
    return _Mesh(allp, starts, alln, offsets, rgb, ids, shells, groups, shadows, names)


def _light(
    scene: Scene, centres: np.ndarray, normals: np.ndarray, base: np.ndarray, glow: np.ndarray, next_door: np.ndarray
) -> list[Rgb]:
    """Colour of each face: a ceiling light, daylight from the window, the lamp where it is on."""

    def point(at: Sequence[float], fall: float) -> np.ndarray:
        away = np.array(at) - centres
        distance = np.sqrt((away**2).sum(1)) + 1e-9
        facing = np.clip((away * normals).sum(1) / distance, 0.0, 1.0)
        return facing / (1.0 + fall * distance**2)

    steady = np.abs(normals) @ np.array([0.95, 0.89, 1.0]) / np.maximum(np.abs(normals).sum(1), 1e-9)
    level = 0.72 if scene.day else 0.7  # night stays light enough to tell white from gray
    strength = level + 0.3 * point((scene.width / 2, scene.depth / 2, WALL_HEIGHT - 0.15), 0.06)
    light = np.repeat(strength[:, None], 3, axis=1)
    pane, cloth = scene.named("window"), scene.named("curtains")
    if pane is not None and scene.day:
        inward = pane.axes[1]
        at = (pane.origin[0] + 0.3 * inward[0], pane.origin[1] + 0.3 * inward[1], 1.7)
        share = 0.14 if cloth is not None and cloth.state == "closed" else 0.5
        light += share * point(at, 0.07)[:, None] * np.array([1.0, 0.99, 0.94])
    lamp = scene.named("lamp")
    if lamp is not None and lamp.state == "on":
        inward = lamp.axes[1]
        at = (lamp.origin[0] + 0.8 * inward[0], lamp.origin[1] + 0.8 * inward[1], 1.5)  # off the wall: softer
        light += 0.75 * point(at, 0.7)[:, None] * np.array([1.0, 0.88, 0.56])
        light += (0.1 if scene.day else 0.16) * np.array([1.0, 0.93, 0.8])
    edge = np.minimum.reduce([centres[:, 0], scene.width - centres[:, 0], centres[:, 1], scene.depth - centres[:, 1]])
    level_faces = np.abs(normals[:, 2]) > 0.9
    corner = np.where(level_faces & (centres[:, 2] < 0.01), 0.86 + 0.14 * np.clip(edge / 0.8, 0.0, 1.0), 1.0)
    light = light * (steady * corner)[:, None]
    light[next_door] = (0.8 * steady[next_door])[:, None]
    light[glow] = 1.0
    shades = np.clip(np.rint(base * np.minimum(light, 1.06)), 0, 255).astype(int)
    return [tuple(int(c) for c in row) for row in shades]


def _paint_order(low: np.ndarray, high: np.ndarray, eye: np.ndarray) -> list[int]:
    """Back-to-front order of disjoint boxes (n, 3) seen from `eye`.

    Box a can hide box b only if no axis separates them with the eye on b's side; whoever hides is painted later.
    A cycle, which boxes allow but rooms hardly have, is broken at the box that is farthest away.
    """
    n = len(low)
    if n == 1:
        return [0]
    below = high[:, None, :] <= low[None, :, :] + 1e-6  # a lies wholly before b on the axis
    b_safe = below & (eye <= low[None, :, :] + 1e-6)  # eye on a's side: b cannot hide a
    a_safe = below & (eye >= high[:, None, :] - 1e-6)  # eye on b's side: a cannot hide b
    cannot = a_safe.any(2) | b_safe.any(2).T  # cannot[a, b]: a cannot hide b
    hides = ~cannot
    np.fill_diagonal(hides, False)
    apart = below.any(2)
    hides &= apart | apart.T  # boxes that meet give no order
    distance = (((low + high) / 2 - eye) ** 2).sum(1)
    waiting = hides.sum(1)  # how many boxes must be painted before a
    left = set(range(n))
    order: list[int] = []
    while left:
        ready = [i for i in left if waiting[i] == 0] or list(left)
        pick = max(ready, key=lambda i: (distance[i], -i))
        order.append(pick)
        left.discard(pick)
        waiting = waiting - hides[:, pick]
    return order


def _visible_faces(mesh: _Mesh, eye: np.ndarray) -> list[int]:
    order: list[int] = []
    for room in (0, 1):
        if room == 1:
            order.extend(mesh.shells[2])
        order.extend(mesh.shells[room])
        if room == 1:
            order.append(-1)  # shadows go between the floor and what stands on it
        group = mesh.groups[room]
        if not group:
            continue
        lows, highs = np.stack([g[0] for g in group]), np.stack([g[1] for g in group])
        for i in _paint_order(lows, highs, eye):
            order.extend(group[i][2])
    return order


def _clip_near(points: np.ndarray) -> np.ndarray:
    kept: list[np.ndarray] = []
    for i in range(len(points)):
        a, b = points[i - 1], points[i]
        if (a[2] > NEAR) != (b[2] > NEAR):
            kept.append(a + (b - a) * ((NEAR - a[2]) / (b[2] - a[2])))
        if b[2] > NEAR:
            kept.append(b)
    return np.array(kept) if len(kept) > 2 else np.empty((0, 3))


def _draw(scene: Scene, t: float, width: int, height: int, paints: Sequence[Any] | None) -> np.ndarray:
    """Paint the scene; with `paints`, one value a face instead of its lit colour and no shadows."""
    mesh = _mesh(scene)
    eye, look = camera(scene, t)
    seen = (mesh.points - eye) @ look.T
    focal = width / 2 / HALF_FOV
    one = 1 << SUBPIXEL_BITS
    near = np.minimum.reduceat(seen[:, 2], mesh.starts[:-1]) <= NEAR
    gone = np.maximum.reduceat(seen[:, 2], mesh.starts[:-1]) <= NEAR
    safe = np.maximum(seen[:, 2], NEAR)
    flat = np.stack([seen[:, 0] / safe * focal + width / 2, seen[:, 1] / safe * focal + height / 2], axis=1) - 0.5
    low, high = np.minimum.reduceat(flat, mesh.starts[:-1]), np.maximum.reduceat(flat, mesh.starts[:-1])
    outside = ((high < 0) | (low > np.array([width, height]))).any(1) & ~near
    drawn = (mesh.normals @ eye > mesh.offsets + 1e-9) & ~gone & ~outside
    fixed = np.rint(flat * one).astype(np.int32)
    flat_paint = paints is not None and isinstance(paints[0], int)
    canvas = np.zeros((height, width) if flat_paint else (height, width, 3), np.uint8)
    colours = mesh.rgb if paints is None else paints
    starts = mesh.starts

    def flatten(points: np.ndarray) -> np.ndarray:
        cut = _clip_near(points)
        uv = cut[:, :2] / cut[:, 2:] * focal + np.array([width / 2, height / 2]) - 0.5
        return np.rint(uv * one).astype(np.int32)

    for index in _visible_faces(mesh, eye):
        if index < 0:
            if paints is None:
                for spot in mesh.shadows:
                    _darken(canvas, flatten((spot - eye) @ look.T))
            continue
        if not drawn[index]:
            continue
        if near[index]:
            polygon = flatten(seen[starts[index] : starts[index + 1]])
            if len(polygon) < 3:
                continue
        else:
            polygon = fixed[starts[index] : starts[index + 1]]
        cv2.fillConvexPoly(canvas, polygon, colours[index], cv2.LINE_8, SUBPIXEL_BITS)
    return canvas


_DARKER = (np.arange(256) * 27 >> 5).astype(np.uint8)  # 27/32: two rings make a soft shadow


def _darken(canvas: np.ndarray, polygon: np.ndarray) -> None:
    if len(polygon) < 3:
        return
    height, width = canvas.shape[:2]
    low = np.maximum((polygon.min(0) >> SUBPIXEL_BITS) - 1, 0)
    high = np.minimum((polygon.max(0) >> SUBPIXEL_BITS) + 2, (width, height))
    if (high <= low).any():
        return
    part = canvas[low[1] : high[1], low[0] : high[0]]
    mask = np.zeros(part.shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, polygon - (low << SUBPIXEL_BITS).astype(np.int32), 1, cv2.LINE_8, SUBPIXEL_BITS)
    cv2.copyTo(cv2.LUT(part, _DARKER), mask, part)


def render_frame(scene: Scene, t: float, size: tuple[int, int]) -> np.ndarray:
    """The picture at position t of the walk.

    Args:
        t: position along the camera's path, in [0, 1].
        size: width and height in pixels.
    Returns:
        (height, width, 3) uint8 RGB.
    """
    width, height = size
    big = _draw(scene, t, width * 2, height * 2, None)
    tall = big[0::2].astype(np.uint16) + big[1::2]  # integer means: the same on every processor
    return ((tall[:, 0::2] + tall[:, 1::2] + 2) >> 2).astype(np.uint8)


def render_depth(scene: Scene, t: float, size: tuple[int, int]) -> np.ndarray:
    """Distance along the line of sight's axis, as a depth camera gives it.

    Returns:
        (height, width) uint16 in millimetres; 0 where nothing is.
    """
    width, height = size
    mesh = _mesh(scene)
    count = len(mesh.normals)
    codes = [((i + 1) & 255, (i + 1) >> 8, 0) for i in range(count)]
    face = _draw(scene, t, width, height, codes)
    index = face[:, :, 0].astype(np.int32) + (face[:, :, 1].astype(np.int32) << 8) - 1
    eye, look = camera(scene, t)
    focal = width / 2 / HALF_FOV
    u, v = np.meshgrid((np.arange(width) + 0.5 - width / 2) / focal, (np.arange(height) + 0.5 - height / 2) / focal)
    rays = np.stack([u, v, np.ones_like(u)], axis=2) @ look  # one metre forward each
    along = np.einsum("hwi,hwi->hw", mesh.normals[index], rays)
    plane = (mesh.offsets - mesh.normals @ eye)[index]
    away = np.where(np.abs(along) > 1e-9, plane / np.where(np.abs(along) > 1e-9, along, 1.0), 0.0)
    return np.where(index >= 0, np.clip(np.rint(away * 1000), 0, 65535), 0).astype(np.uint16)


def frame_times(count: int) -> list[float]:
    """Positions of `count` evenly spaced frames, both ends included."""
    return [i / (count - 1) if count > 1 else 0.0 for i in range(count)]


@lru_cache(maxsize=4)
def name_pictures(scene: Scene, frames: int = 8) -> tuple[tuple[str, ...], np.ndarray]:
    """What is where in `frames` evenly spaced frames.

    Returns:
        names, "" first for what has none, and a (frames, 120, 160) uint8 array of indices into them.
    """
    mesh = _mesh(scene)
    pictures = [_draw(scene, t, 160, 120, mesh.ids) for t in frame_times(frames)]
    return tuple(mesh.names), np.stack(pictures)


@lru_cache(maxsize=64)
def visible_share(scene: Scene, frames: int = 8) -> dict[str, float]:
    """Largest share of the picture, in [0, 1], that each named piece takes in `frames` evenly spaced frames."""
    names, pictures = name_pictures(scene, frames)
    shares: dict[str, float] = {}
    for picture in pictures:
        counts = np.bincount(picture.ravel(), minlength=len(names))
        for name, count in zip(names, counts, strict=False):
            if name:
                shares[name] = max(shares.get(name, 0.0), float(count) / picture.size)
    return shares


# ------------------------------------------------------------------------------------------------ questions

MIN_SHARE = 0.01  # a piece is asked about if it takes this share of the picture in one of 8 frames
NUMBERS = ("zero", "one", "two", "three", "four")
_SEATS = ("sofa", "armchair", "chair")
# What things are for, where they belong and what they are made of: knowledge that no look at the pictures gives.
# Like all knowledge of the demo's people it is a convention; the demo's base model has never been told.
PURPOSES = {
    "sofa": "sitting",
    "armchair": "sitting",
    "bed": "sleeping",
    "desk": "working",
    "table": "eating",
    "lamp": "giving light",
    "bookshelf": "keeping books",
    "wardrobe": "keeping clothes",
    "fridge": "keeping food cold",
    "stove": "cooking",
    "piano": "playing music",
    "TV": "watching films",
    "clock": "telling the time",
    "curtains": "keeping out light",
    "bathtub": "bathing",
    "ball": "playing",
    "teddy bear": "playing",
    "backpack": "carrying things",
    "laptop": "working",
    "vase": "holding flowers",
    "box": "storing things",
    "window": "letting in light",
    "door": "walking through",
    "mirror": "looking at oneself",
}
HOMES = {
    "bed": "bedroom",
    "wardrobe": "bedroom",
    "nightstand": "bedroom",
    "fridge": "kitchen",
    "stove": "kitchen",
    "cabinet": "kitchen",
    "sofa": "living room",
    "TV": "living room",
    "armchair": "living room",
    "piano": "living room",
    "desk": "office",
    "laptop": "office",
    "table": "dining room",
    "bathtub": "bathroom",
}
MADE_OF = {
    "vase": "glass",
    "window": "glass",
    "mirror": "glass",
    "curtains": "cloth",
    "backpack": "cloth",
    "teddy bear": "cloth",
    "rug": "wool",
    "box": "cardboard",
    "ball": "rubber",
    "bookshelf": "wood",
    "door": "wood",
    "fridge": "metal",
    "stove": "metal",
    "lamp": "metal",
}
Draft = dict[str, Any]


def _ask(question: str, answer: str, *extra: str) -> Draft:
    return {"question": question, "answer": answer, "extra": list(extra)}


def _weighted(rng: Draws, pools: Sequence[tuple[float, list[Draft]]]) -> Draft | None:
    """One draft: first a pool by weight among those that are not empty, then any of its drafts."""
    full = [(weight, pool) for weight, pool in pools if pool]
    at = rng.random() * sum(weight for weight, _ in full)
    for weight, pool in full:
        at -= weight
        if at <= 0:
            return _pick(rng, pool)
    return None


def _neighbours(scene: Scene) -> list[tuple[Thing, Thing]]:
    """Pairs of furniture that stand side by side at one wall: (left, right) for someone who faces it."""
    pairs = []
    for wall in (0, 1, 3):
        standing = [t for t in scene.things if t.wall == wall and (t.name in SIZES or t.name == "TV")]
        row = sorted((t for t in standing if t.name != "tv stand"), key=lambda t: t.along)  # the TV names both
        pairs.extend(itertools.pairwise(row))
    return pairs


def _draft_pools(scene: Scene, general: bool) -> dict[str, list[tuple[float, list[Draft]]]]:
    """All questions that can be asked about the scene, by category, in weighted pools of one template each.

    Args:
        general: with those that want knowledge of things at large too.
    """
    share = visible_share(scene)

    def seen(name: str, limit: float = MIN_SHARE) -> bool:
        return share.get(name, 0.0) >= limit

    unique = {t.name: t for t in scene.things if t.wall != -2}
    chairs = [t for t in scene.things if t.name == "chair"]
    coloured = [t for t in unique.values() if t.colour and seen(t.name)]
    colours = [t.colour for t in unique.values()] + (["white"] if "fridge" in unique else [])
    big = [t for t in coloured if share[t.name] >= 0.03]
    pools: dict[str, list[tuple[float, list[Draft]]]] = {name: [] for name in CATEGORIES}

    # attribute recognition: colours of large pieces lead, since they are what a small model can learn to see
    plural = {"curtains": "are", "chair": "are" if len(chairs) > 1 else "is"}
    called = {"chair": "chairs" if len(chairs) > 1 else "chair"}

    def colour_of(t: Thing) -> Draft:
        return _ask(f"What color {plural.get(t.name, 'is')} the {called.get(t.name, t.name)}?", t.colour)

    rug, table_top = unique.get("rug"), unique.get("table")
    shapes = [t for t in (rug, table_top) if t is not None and t.state in ("round", "square") and seen(t.name)]
    pools["attribute recognition"] = [
        (6.0, [colour_of(t) for t in big]),
        (1.0, [colour_of(t) for t in coloured if t not in big]),
        (1.6, [_ask("What color are the walls?", scene.wall_colour)]),
        (0.5, [_ask("What is the floor made of?", scene.floor_material)]),
        (0.5, [_ask(f"What shape is the {t.name}?", t.state) for t in shapes]),
    ]

    # object recognition: what has this colour, what stands on what
    pieces = [t for t in coloured if t.name in (*COLOURED, "table") and colours.count(t.colour) == 1]
    resting = [t for t in unique.values() if t.place.startswith("on the ") and t.name in _ITEMS and seen(t.name, 0.006)]
    wall_pieces = [t for t in unique.values() if t.place == "on the wall" and seen(t.name, 0.006)]
    named = [_ask(f"What is the {t.colour} piece of furniture?", t.name) for t in pieces]
    pools["object recognition"] = [
        (3.0, named),
        (1.5, [_ask(f"What is {t.place}?", t.name) for t in resting if t.place != "on the floor"]),
        (0.7, [_ask("What is hanging on the wall?", t.name) for t in wall_pieces]),
    ]

    # spatial understanding: neighbours as one faces them
    sides: list[Draft] = []
    beside: list[Draft] = []
    for left, right in _neighbours(scene):
        if seen(left.name) and seen(right.name):
            sides.append(_ask(f"Is the {left.name} to the left or to the right of the {right.name}?", "left"))
            sides.append(_ask(f"Is the {right.name} to the left or to the right of the {left.name}?", "right"))
            beside.append(_ask(f"What is to the left of the {right.name}?", left.name))
            beside.append(_ask(f"What is to the right of the {left.name}?", right.name))
    over: list[Draft] = []
    for t in resting:
        if t.place not in ("on the floor", "on the rug"):
            over.append(_ask(f"What is the {t.name} standing on?", t.place.removeprefix("on the ")))
    across: list[Draft] = []
    large = [name for name in (*COLOURED, "TV", "fridge") if name not in ("tv stand", "nightstand")]
    mains = [t for t in unique.values() if t.wall in (0, 1, 3) and t.name in large and seen(t.name, 0.02)]
    for a, b in ((1, 3), (3, 1)):
        here, there = [t for t in mains if t.wall == a], [t for t in mains if t.wall == b]
        if len(there) == 1:
            across += [_ask(f"What is at the wall across from the {t.name}?", there[0].name) for t in here]
    pools["spatial understanding"] = [(2.2, sides), (1.6, beside), (1.4, over), (1.0, across)]

    # object state recognition
    states: list[Draft] = []
    lamp, screen, cloth, door = (unique.get(n) for n in ("lamp", "TV", "curtains", "door"))
    if lamp and seen("lamp", 0.006):
        states.append(_ask("Is the lamp on or off?", lamp.state))
    if screen and seen("TV"):
        states.append(_ask("Is the TV on or off?", screen.state))
    if cloth and seen("curtains"):
        states.append(_ask("Are the curtains open or closed?", cloth.state))
    if door and seen("door"):
        states.append(_ask("Is the door open or closed?", door.state))
    pools["object state recognition"] = [(1.0, [draft]) for draft in states]

    # functional reasoning
    seats = [t for t in unique.values() if t.name in _SEATS and seen(t.name)]
    able = [
        _ask("Can I watch television in this room?", "yes" if screen else "no"),
        _ask("Can I play the piano here?", "yes" if "piano" in unique else "no"),
        _ask("Could I work at a desk in this room?", "yes" if "desk" in unique else "no"),
        _ask("Can someone sleep in a bed here?", "yes" if "bed" in unique else "no"),
        _ask("Can I keep food cold in this room?", "yes" if "fridge" in unique else "no"),
    ]
    held = [draft for draft in able if draft["answer"] == "yes"]
    missing = [draft for draft in able if draft["answer"] == "no"]
    use: list[Draft] = []
    for name, question in (
        ("bed", "What color is the furniture that I can sleep in?"),
        ("bookshelf", "What color is the furniture that holds the books?"),
        ("wardrobe", "What color is the furniture for my coats?"),
        ("piano", "What color is the thing that I can play music on?"),
    ):
        if name in unique and seen(name, 0.02):
            use.append(_ask(question, unique[name].colour))
    if len(seats) == 1:
        plain = seats[0]
        use.append(_ask("I want to sit down. What color is the seat?", plain.colour))
    sit = [_ask("Where can I sit down?", f"on the {seats[0].name}")] if len(seats) == 1 and not chairs else []
    lie = "bed" if "bed" in unique else "sofa" if "sofa" in unique else ""
    if lie and seen(lie):
        sit.append(_ask("Where can I lie down?", f"on the {lie}"))
    counts: list[Draft] = []
    if table_top and scene.kind in ("dining room", "kitchen") and seen("chair"):
        counts.append(_ask("How many people can sit at the table?", NUMBERS[len(chairs)]))
    pools["functional reasoning"] = [(1.1, held), (1.1, missing), (2.2, use), (1.0, sit), (1.0, counts)]
    known = [name for name in unique if seen(name, 0.006)]
    if general:
        purposes = [_ask(f"What is the {name} for?", PURPOSES[name]) for name in known if name in PURPOSES]
        pools["functional reasoning"].append((14.0, purposes))

    # world knowledge
    outside = [_ask("Is it day or night outside?", "day" if scene.day else "night")] if seen("window", 0.006) else []
    behind = [_ask("Which room is behind the open door?", scene.next_room)] if scene.door_open and seen("door") else []
    pools["world knowledge"] = [
        (2.4, [_ask("What kind of room is this?", scene.kind)]),
        (1.2, outside),
        (0.8, behind),
    ]
    if general:
        homes = [_ask(f"Which room does the {name} usually belong in?", HOMES[name]) for name in known if name in HOMES]
        makes = [_ask(f"What is the {name} usually made of?", MADE_OF[name]) for name in known if name in MADE_OF]
        pools["world knowledge"] += [(6.0, homes), (4.0, makes)]

    # object localization, with four further accepted answers as in Open-EQA
    where: list[Draft] = []
    for t in resting:
        host = unique.get(t.place.removeprefix("on the "))
        told = host.colour if host is not None and host.colour else ""
        spot = t.place.removeprefix("on the ")
        shade_of = f"on the {told} {spot}" if told else f"{t.place} in the {scene.kind}"
        where.append(_ask(f"Where is the {t.name}?", t.place, f"on top of the {spot}", f"the {spot}", shade_of,
                          f"{t.place} of the {scene.kind}"))  # fmt: skip
    next_to: list[Draft] = []
    for left, right in _neighbours(scene):
        for t, other, side in ((left, right, "left"), (right, left, "right")):
            if t.name in ("lamp", "plant", "nightstand") and other.name in _LANDMARKS and seen(t.name, 0.006):
                rivals = sum(1 for pair in _neighbours(scene) if t in pair)
                if rivals == 1:
                    next_to.append(_ask(f"Where is the {t.name}?", f"next to the {other.name}", f"by the {other.name}",
                                        f"beside the {other.name}", f"to the {side} of the {other.name}",
                                        f"near the {other.name}"))  # fmt: skip
    fallback = [_ask("Where is the door?", "behind the camera", "at the start", "where the walk starts", "in the wall",
                     "opposite the far wall")] if not where and not next_to else []  # fmt: skip
    pools["object localization"] = [(2.6, where), (1.4, next_to), (1.0, fallback)]
    return pools


_LANDMARKS = ("sofa", "bed", "TV", "bookshelf", "desk", "piano")
_ITEMS = ("ball", "teddy bear", "backpack", "laptop", "vase", "box")
# what follows the first question of each category
_MORE = ("attribute recognition", "functional reasoning", "world knowledge", "attribute recognition",
         "object state recognition", "object localization", "attribute recognition", "object recognition",
         "spatial understanding", "functional reasoning")  # fmt: skip


def make_questions(
    scene: Scene, count: int, rng: Draws, avoid: Collection[str] = (), general: bool = True
) -> list[dict[str, Any]]:
    """Questions whose answers are known from the scene.

    Args:
        count: how many, >= 1; the first seven cover the seven categories. Fewer come back only
            where the scene has no more to ask.
        rng: random source with `.random()`; equal states give equal questions.
        avoid: question texts that were asked before; taken only where a category has no other.
        general: also what things are for, where they belong and what they are made of.
    Returns:
        dicts with question, answer, category and, on object localization questions only, extra_answers (4 strings).
        No question text occurs twice.
    """
    pools = _draft_pools(scene, general)
    asked: set[str] = set()
    questions: list[dict[str, Any]] = []

    def add(category: str) -> None:
        left = [(w, [d for d in pool if d["question"] not in asked]) for w, pool in pools[category]]
        fresh = [(w, [d for d in pool if d["question"] not in avoid]) for w, pool in left]
        draft = _weighted(rng, fresh) or _weighted(rng, left)
        if draft is None:
            return
        asked.add(draft["question"])
        entry = {"question": draft["question"], "answer": draft["answer"], "category": category}
        if category == "object localization":
            entry["extra_answers"] = draft["extra"]
        questions.append(entry)

    plan = [*CATEGORIES, *(_MORE[i % len(_MORE)] for i in range(4 * count))]
    for category in plan:
        if len(questions) >= count:
            break
        add(category)
    return questions
