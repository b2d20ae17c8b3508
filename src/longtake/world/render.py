"""Frames of a story. Any size: everything is drawn in units of the frame's height, antialiased, in plain numpy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from longtake.world.story import CHARACTERS, THINGS, Event, Scene, Story

COLOUR_RGB = {
    "red": (220, 40, 40),
    "green": (40, 190, 60),
    "blue": (40, 80, 230),
    "yellow": (250, 220, 30),
    "purple": (160, 50, 190),
    "white": (250, 250, 250),
}
PLACE_RGB = {  # (upper half, lower half)
    "beach": ((120, 200, 250), (235, 215, 150)),
    "cave": ((35, 32, 40), (70, 62, 66)),
    "forest": ((20, 70, 35), (55, 45, 20)),
    "garden": ((170, 225, 250), (110, 200, 80)),
    "hall": ((110, 70, 90), (60, 30, 40)),
    "kitchen": ((250, 235, 205), (190, 140, 100)),
    "snow": ((150, 165, 190), (235, 240, 250)),
    "street": ((150, 150, 150), (85, 85, 95)),
}
THING_RGB = {"ball": (255, 130, 20), "book": (130, 70, 20), "cup": (30, 200, 210), "key": (255, 215, 0), "lamp": (255, 120, 200)}
FURNITURE = {"box": (0.34, (110, 110, 120)), "door": (0.62, (120, 70, 30))}
"""Size and colour."""
BIRD_RGB = (20, 20, 20)
CHARACTER_SIZE, THING_SIZE, BIRD_SIZE = 0.40, 0.26, 0.12
SUPERSAMPLE = 4


@dataclass(frozen=True)
class Part:
    """Something drawn, its middle in units of the frame's height."""

    name: str
    x: float
    y: float


def render_frame(story: Story, time_s: float, height: int, width: int) -> np.ndarray:
    """The picture at `time_s`: uint8 [Y=height, X=width, 3], RGB."""
    scene = scene_at(story, time_s)
    frame = background(scene.place, height, width).copy()
    if scene.event_start_s <= time_s < scene.event_stop_s:
        progress = (time_s - scene.event_start_s) / (scene.event_stop_s - scene.event_start_s)
        draw_event(frame, scene.event, progress, time_s)
    elif scene.has_bird:
        draw_bird(frame, time_s)
    return frame


def scene_at(story: Story, time_s: float) -> Scene:
    """The scene whose [start_s, stop_s) holds `time_s`; the last one from there on."""
    return next((scene for scene in story.scenes if time_s < scene.stop_s), story.scenes[-1])


def draw_event(frame: np.ndarray, event: Event, progress: float, time_s: float) -> None:
    """Who stands where tells what happens; the thing moves while it does."""
    for part in parts_of(event, progress, time_s, frame.shape[1] / frame.shape[0]):
        if part.name in CHARACTERS:
            draw_character(frame, part.name, part.x, part.y)
        elif part.name in THINGS:
            draw_thing(frame, part.name, part.x, part.y)
        else:
            size, rgb = FURNITURE[part.name]
            blend(frame, sprite(part.name, pixels(size, frame.shape[0])), rgb, part.x, part.y)


def parts_of(event: Event, progress: float, time_s: float, width: float) -> tuple[Part, ...]:
    """What is drawn of an event, in this order; `width` of the frame in heights."""
    left, right, middle = 0.27 * width, 0.75 * width, 0.5 * width
    bob = 0.02 * np.sin(time_s * 5.0)
    actor, thing = Part(event.actor, left, 0.55 + bob), str(event.thing)
    if event.kind == "meets":
        return actor, Part(str(event.other), right, 0.55 - bob)
    if event.kind == "gives":
        return actor, Part(str(event.other), right, 0.55 - bob), Part(thing, middle + (progress - 0.5) * 0.16, 0.2)
    if event.kind == "takes":
        return actor, Part(thing, right - progress * 0.12, 0.82)
    if event.kind == "hides":
        return actor, Part(thing, right, 0.42 + progress * 0.04), Part("box", right, 0.76)
    return actor, Part("door", right, 0.6), Part(thing, right - 0.04 + progress * 0.04, 0.55)


def bird_at(time_s: float, width: float) -> Part:
    """Where it flies."""
    return Part("bird", (time_s * 0.11 % 1.0) * width, 0.14 + 0.03 * np.sin(time_s * 3.0))


def objects_at(story: Story, time_s: float, height: int, width: int) -> list[tuple[str, tuple[int, int, int, int]]]:
    """What `render_frame` shows besides the place: names and boxes (left, top, right, bottom) in thousandths of width and height,
    as far as they lie inside the frame."""
    scene, aspect = scene_at(story, time_s), width / height
    parts: tuple[Part, ...] = ()
    if scene.event_start_s <= time_s < scene.event_stop_s:
        progress = (time_s - scene.event_start_s) / (scene.event_stop_s - scene.event_start_s)
        parts = parts_of(scene.event, progress, time_s, aspect)
    elif scene.has_bird:
        parts = (bird_at(time_s, aspect),)
    boxes = ((part.name, box_of(part, height, width)) for part in parts)
    return [(name, box) for name, box in boxes if box[0] < box[2] and box[1] < box[3]]


def box_of(part: Part, height: int, width: int) -> tuple[int, int, int, int]:
    """Of what is drawn, its dark outline included."""
    size = size_of(part.name, height)
    ys, xs = np.nonzero(sprite(part.name.split(" ")[-1], size) > 0.5)
    top, left = round(part.y * height - size / 2), round(part.x * height - size / 2)
    edges = ((left + xs.min(), width), (top + ys.min(), height), (left + xs.max() + 1, width), (top + ys.max() + 1, height))
    x0, y0, x1, y1 = (round(1000 * min(max(0, int(edge)), side) / side) for edge, side in edges)
    return x0, y0, x1, y1


def size_of(name: str, height: int) -> int:
    """Side in pixels of the largest sprite that is drawn of it."""
    if name in CHARACTERS:
        size = pixels(CHARACTER_SIZE, height)
        return size + max(2, size // 8)
    if name in THINGS:
        size = pixels(THING_SIZE, height)
        return size + max(2, size // 6)
    return pixels(BIRD_SIZE if name == "bird" else FURNITURE[name][0], height)


def draw_character(frame: np.ndarray, name: str, x: float, y: float) -> None:
    colour, shape = name.split(" ")
    size = pixels(CHARACTER_SIZE, frame.shape[0])
    blend(frame, sprite(shape, size + max(2, size // 8)), (15, 15, 15), x, y)
    blend(frame, sprite(shape, size), COLOUR_RGB[colour], x, y)


def draw_thing(frame: np.ndarray, thing: str, x: float, y: float) -> None:
    size = pixels(THING_SIZE, frame.shape[0])
    blend(frame, sprite(thing, size + max(2, size // 6)), (15, 15, 15), x, y)
    blend(frame, sprite(thing, size), THING_RGB[thing], x, y)


def draw_bird(frame: np.ndarray, time_s: float) -> None:
    bird = bird_at(time_s, frame.shape[1] / frame.shape[0])
    blend(frame, sprite("bird", pixels(BIRD_SIZE, frame.shape[0])), BIRD_RGB, bird.x, bird.y)


def pixels(size: float, height: int) -> int:
    return max(2, round(size * height))


def blend(frame: np.ndarray, mask: np.ndarray, rgb: tuple[int, int, int], x: float, y: float) -> None:
    """Paint `rgb` through `mask` (float32 [S, S] in 0..1) centred at (x, y) in units of the frame's height; clipped at the edges."""
    size = mask.shape[0]
    top, left = round(y * frame.shape[0] - size / 2), round(x * frame.shape[0] - size / 2)
    y0, x0, y1, x1 = max(0, top), max(0, left), min(frame.shape[0], top + size), min(frame.shape[1], left + size)
    if y0 >= y1 or x0 >= x1:
        return
    alpha = mask[y0 - top : y1 - top, x0 - left : x1 - left, None]
    region = frame[y0:y1, x0:x1]
    region[:] = (region * (1.0 - alpha) + np.asarray(rgb, np.float32) * alpha + 0.5).astype(np.uint8)


@lru_cache(maxsize=64)
def background(place: str, height: int, width: int) -> np.ndarray:
    """Two tones with a soft horizon and a faint grain that is the place's own."""
    upper, lower = (np.asarray(rgb, np.float32) for rgb in PLACE_RGB[place])
    rows = np.clip((np.arange(height) / height - 0.45) / 0.1, 0.0, 1.0)[:, None, None]
    grain = np.random.default_rng(sum(place.encode())).normal(0.0, 5.0, (height // 8 + 1, width // 8 + 1, 1))
    grain = grain.repeat(8, 0).repeat(8, 1)[:height, :width]
    return np.clip(upper * (1 - rows) + lower * rows + grain, 0, 255).astype(np.uint8)


@lru_cache(maxsize=256)
def sprite(name: str, size: int) -> np.ndarray:
    """Antialiased mask float32 [size, size] in 0..1."""
    fine = size * SUPERSAMPLE
    axis = (np.arange(fine, dtype=np.float32) + 0.5) / fine * 2.0 - 1.0
    x, y = np.meshgrid(axis, axis)
    inside = outline(name, x, y).astype(np.float32)
    return inside.reshape(size, SUPERSAMPLE, size, SUPERSAMPLE).mean((1, 3))


def outline(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where the shape is, on coordinates in -1..1 (y downwards)."""
    radius = np.hypot(x, y)
    ring = (np.hypot(x + 0.45, y) < 0.5) & (np.hypot(x + 0.45, y) > 0.2)
    shapes = {
        "circle": radius < 0.95,
        "square": (abs(x) < 0.8) & (abs(y) < 0.8),
        "triangle": (y > -0.9) & (y < 0.8) & (abs(x) < (y + 0.9) * 0.56),
        "ball": radius < 0.85,
        "book": (abs(x) < 0.55) & (abs(y) < 0.9),
        "cup": (y > -0.6) & (y < 0.7) & (abs(x) < 0.75 - 0.25 * y),
        "key": ring | ((abs(y) < 0.16) & (x > 0.0) & (x < 0.95)) | ((x > 0.6) & (x < 0.95) & (y > 0) & (y < 0.5)),
        "lamp": ((y < 0.1) & (y > -0.9) & (abs(x) < (y + 1.2) * 0.6)) | ((abs(x) < 0.12) & (y > 0)) | ((y > 0.7) & (abs(x) < 0.5)),
        "box": (abs(x) < 0.95) & (abs(y) < 0.75),
        "door": (abs(x) < 0.55) & (abs(y) < 0.95),
        "bird": (abs(y - 0.5 * abs(x) + 0.2) < 0.2) & (abs(x) < 0.95),
    }
    return np.asarray(shapes[name])
