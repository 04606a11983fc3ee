"""Render a face from action-unit intensities and appearance values, with numpy only."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from adadf_dist.data.synthetic.pixels import (
    Color,
    Plane,
    gaussian,
    gradient_color,
    hue_color,
    norm,
    rgb,
    smoothstep,
    stripes,
)

_EYES, _MOUTH, _VIEW = -0.08, 0.58, 1.13  # heights on the face; half the image side
_SKIN = (0xFFE0CC, 0xF0C4A4, 0xD3A07C, 0x96654A, 0x5E4031)
_HAIR = (0x1C1715, 0x3A261B, 0x6B4226, 0xA0522D, 0xD9B26B, 0xB9B4AE)
_IRIS = (0x3A2312, 0x6B4423, 0x5E7A3A, 0x4A7FA5, 0x7D8C99)
_FRAMES = (0x151515, 0x5A2D1A, 0x7F8489, 0x1D2C50)


class FaceRenderer:
    """Renders one face, back to front. Planes are [size, size]; `image` and `light` are [3, size, size].

    A pixel maps to (u, v) of the upright frontal head and to (x, y) of its turned surface; y points down. `au` contains
    intensities by action unit, `appearance` the values of `faces.APPEARANCE`.
    """

    def __init__(self, au: Mapping[int, float], appearance: Mapping[str, float], size: int) -> None:
        self.au, self.appearance = au, appearance
        step = 2 * _VIEW / size
        scale = appearance["scale"]
        self.pixel = step / scale
        axis = (np.arange(size, dtype=np.float32) + 0.5) * step - _VIEW
        across, down = axis[None, :] - appearance["shift_x"], axis[:, None] - appearance["shift_y"]
        cos, sin = math.cos(appearance["roll"]) / scale, math.sin(appearance["roll"]) / scale
        self.u, self.v = across * cos + down * sin, down * cos - across * sin
        self.turn()
        self.skin = gradient_color(_SKIN, appearance["skin"])
        self.hair = gradient_color(_HAIR, appearance["hair_color"])
        self.nose = _EYES + appearance["nose_length"]  # height of the tip
        self.light = self.shine()
        self.image: Color = np.empty((3, size, size), np.float32)
        for part in (self.backdrop, self.body, self.head, self.mouth, self.eyes, self.brows, self.fringe, self.glasses):
            part()

    def turn(self) -> None:
        """Turn the head ellipsoid by yaw and pitch, and compute the point on the face at each pixel."""
        wide, high = 1.08 * self.appearance["face_width"], 1.12
        nx, ny = self.u / wide, self.v / high
        nz = np.sqrt(np.maximum(1 - nx * nx - ny * ny, 0.05))
        self.normal = nx, ny, nz
        cos, sin = math.cos(self.appearance["yaw"]), math.sin(self.appearance["yaw"])
        nx, nz = nx * cos - nz * sin, nz * cos + nx * sin
        ny = ny * math.cos(self.appearance["pitch"]) - nz * math.sin(self.appearance["pitch"])
        self.x, self.y = nx * wide, ny * high
        self.side = np.abs(self.x)  # both halves of the face are rendered at once

    def paint(self, color: Color, cover: Plane) -> None:
        self.image += (color - self.image) * cover

    def fill(self, inside: Plane) -> Plane:
        """Return how much of each pixel a shape covers, from the signed distance to its outline."""
        cover: Plane = np.clip(0.5 + inside / self.pixel, 0, 1)
        return cover

    def stroke(self, distance: Plane, half_width: Plane | float) -> Plane:
        """Return how much of each pixel a line covers. Lines thinner than a pixel fade instead of vanishing."""
        cover: Plane = np.minimum(self.fill(half_width - np.abs(distance)), 2 * half_width / self.pixel)
        return cover

    def shine(self) -> Color:
        """Return the light reflected by the skin: a soft lamp on the relief and its creases, and slight gloss."""
        look = self.appearance
        slope_y, slope_x = np.gradient(self.relief(), self.pixel)
        nx, ny, nz = self.normal[0] - slope_x, self.normal[1] - slope_y, self.normal[2]
        lamp = look["light_x"], look["light_y"], 0.9
        facing = nx * lamp[0] + ny * lamp[1] + nz * lamp[2]
        facing = np.maximum(facing / (math.hypot(*lamp) * np.sqrt(nx * nx + ny * ny + nz * nz)), -0.2)
        shade = (1.08 - 0.75 * look["light_strength"] * (1 - facing)) * (1 - 0.5 * self.creases())
        gloss = 0.16 * look["light_strength"] * np.exp(24 * (facing - 1))
        light: Color = np.maximum(shade, 0.12) ** rgb(0.9, 1.06, 1.14) + gloss  # shadows on skin are warm
        return light

    def relief(self) -> Plane:
        """Return the height of the facial features above the head ellipsoid."""
        au, look, x, y, side = self.au, self.appearance, self.x, self.y, self.side
        along = np.clip((y + 0.1) / (self.nose + 0.1), 0, 1)
        ridge = 0.15 * along * gaussian(x, 0.035 + 0.5 * look["nose_width"] * along)
        ridge = ridge * (0.5 - 0.5 * np.tanh((y - self.nose - 0.04) / 0.032))
        wings = 0.035 * gaussian(side - look["nose_width"], 0.032) * gaussian(y - self.nose + 0.02 * au[9], 0.045)
        raised = max(au[6], 0.7 * au[12], 0.5 * au[9])
        full = 0.015 + 0.02 * look["cheeks"] + 0.05 * raised
        cheeks = full * gaussian(side - 0.4, 0.15) * gaussian(y - 0.2 + 0.06 * raised, 0.12)
        sockets = -0.045 * gaussian(side - look["eye_distance"] + 0.02, 0.15) * gaussian(y - _EYES + 0.03, 0.1)
        chin = 0.035 * gaussian(x, 0.14) * gaussian(y - 0.86 - 0.1 * au[26], 0.08)
        muzzle = 0.04 * gaussian(x, 0.26) * gaussian(y - _MOUTH, 0.16)
        return ridge + wings + cheeks + sockets + chin + muzzle

    def creases(self) -> Plane:
        """Return the depth of folds and wrinkles, 0 to 1: some from age, most from the expression."""
        au, x, y, side, age = self.au, self.x, self.y, self.side, self.appearance["age"]
        eye, nose_width = self.appearance["eye_distance"], self.appearance["nose_width"]
        width, corner = self.corner()
        along = np.clip((y - self.nose + 0.05) / (corner + 0.1 - self.nose), 0, 1)
        path = nose_width + 0.015 + (width + 0.055 - nose_width) * along**1.3
        nasolabial = 0.12 + 0.2 * age + 0.5 * au[12] + 0.45 * au[9] + 0.3 * au[10]
        total: Plane = nasolabial * gaussian(side - path, 0.022) * np.sin(np.pi * np.sqrt(along))
        forehead = stripes(y + 0.15 * x * x, 0.095) * gaussian(y + 0.55, 0.12) * gaussian(x, 0.16 + 0.2 * au[2])
        total += (0.08 * age + 0.45 * max(au[1], au[2])) * forehead
        frown = gaussian(side - 0.045, 0.017) * gaussian(y + 0.29, 0.08)
        total += (0.08 * age + 0.65 * au[4] * (1 - 0.5 * au[1])) * frown
        bridge = stripes(y + 0.4 * side, 0.065) * gaussian(x, 0.1) * gaussian(y - 0.03, 0.08)
        total += 0.6 * au[9] * bridge
        outer = side - eye - self.appearance["eye_width"]
        crows_feet = stripes((y - _EYES) / (np.abs(outer) + 0.08), 0.5) * gaussian(outer - 0.075, 0.045)
        total += (0.1 * age + 0.5 * au[6]) * crows_feet * gaussian(y - _EYES, 0.09)
        under = y - _EYES - 0.115 + 0.02 * au[6] + 0.6 * (side - eye) ** 2
        total += (0.12 + 0.2 * age + 0.4 * au[6] + 0.2 * au[7]) * gaussian(side - eye, 0.13) * gaussian(under, 0.018)
        chin = gaussian(x, 0.13) * gaussian(y - 0.745 - 0.12 * au[26] - 0.04 * au[16], 0.025)
        total += (0.12 + 0.35 * au[15] + 0.3 * au[23]) * chin
        total += 0.25 * gaussian(x, nose_width) * gaussian(y - self.nose - 0.065, 0.02)  # shadow below the nose
        np.minimum(total, 1, out=total)
        return total

    def corner(self) -> tuple[float, float]:
        """Return the position of the mouth corner: distance from the middle, and height."""
        au = self.au
        width = self.appearance["mouth_width"] * (1 + 0.38 * au[12] + 0.4 * au[20] - 0.14 * au[23] + 0.05 * au[15])
        width *= 1 - 0.22 * au[26] * (1 - au[20])
        return width, _MOUTH - 0.018 - 0.115 * au[12] + 0.115 * au[15] + 0.04 * au[20] + 0.03 * au[23] + 0.06 * au[26]

    def backdrop(self) -> None:
        fall = 0.95 - 0.25 * self.v + 0.15 * self.appearance["light_x"] * self.u
        self.image[:] = hue_color(self.appearance["backdrop"], 0.5, 0.13) * fall

    def body(self) -> None:
        """Paint long hair behind the head, then neck, clothes and ears."""
        v, out, look = self.v, np.abs(self.u), self.appearance
        width = look["face_width"] * look["hair_volume"]
        if look["hair_length"] > 0.62:
            skull = width * np.sqrt(np.maximum(1 - v * v, 0)) - 0.03
            flow = np.where(v > 0, width + 0.1 * v + 0.04 * look["hair_wave"] * np.sin(9 * v), skull)
            self.paint(0.55 * self.hair * self.strands(), self.fill(flow - out))
        neck = self.fill(0.54 * look["face_width"] + 0.1 * (v - 1) ** 2 - out) * self.fill(v - 0.5)
        self.paint(self.skin * np.clip(1.2 * v - 0.64, 0.45, 0.8), neck)
        collar = 1.12 - 0.08 * out + 0.35 * np.square(np.maximum(out - 0.3, 0))
        self.paint(hue_color(look["clothes"], 0.42, 0.25) * (1.15 - 0.3 * out), self.fill(v - collar))
        ear = norm((out - 0.98 * look["face_width"]) / 0.09, (v - 0.08) / (0.2 * look["ear"]))
        self.paint(self.skin * self.light * (0.75 + 0.2 * np.minimum(ear, 1)), self.fill((1 - ear) * 0.09))

    def head(self) -> None:
        """Paint skin, blush, beard and nostrils."""
        look, au, v, x, y, side = self.appearance, self.au, self.v, self.x, self.y, self.side
        across = np.abs(self.u) / (look["face_width"] * (1 - 0.17 * smoothstep((v - 0.1) / 0.9)))
        down = np.where(v > 0, v / (look["face_length"] + 0.11 * au[26]), -v)
        power = np.where(v > 0, np.float32(look["jaw"]), np.float32(2.3))
        self.face = self.fill((1 - (across**power + down**power) ** (1 / power)) * 0.72)
        flush = gaussian(side - 0.4, 0.16) * gaussian(y - 0.25, 0.14)
        flush = flush + 0.7 * gaussian(x, 0.12) * gaussian(y - self.nose, 0.1)
        skin = self.skin * (1 - (0.02 + 0.17 * look["redness"]) * flush * rgb(0.1, 1.0, 0.8))
        if look["beard"] > 0.72:
            start = 0.43 + 0.2 * gaussian(side - 0.3, 0.12) - 1.6 * np.square(np.maximum(side - 0.45, 0))
            curls = 0.92 + 0.08 * np.sin(70 * x) * np.sin(63 * y)
            density = 2.6 * (look["beard"] - 0.7) * smoothstep((y - start) / 0.1) * curls
            skin = skin + (self.hair * 0.8 - skin) * density
        self.paint(skin * self.light, self.face)
        half = 0.3 * look["nose_width"], 0.022
        nostril = norm((side - 0.5 * look["nose_width"]) / half[0], (y - self.nose - 0.045 + 0.02 * au[9]) / half[1])
        self.paint(self.skin * 0.3, 0.75 * self.fill((1 - nostril) * half[1]))

    def mouth(self) -> None:
        """Paint the lips and, if they are parted, the dark mouth, the tongue and the teeth between them."""
        au, x, y, lip = self.au, self.x, self.y, self.appearance["lip"]
        width, corner = self.corner()
        along = np.minimum(self.side / width, 1)
        bow = 1 - along * along
        middle = _MOUTH + 0.04 * au[26] + 0.02 * au[15]
        line = middle + (corner - 0.04 * au[26] - 0.02 * au[15] - _MOUTH) * along**1.8
        smile = max(0.0, au[12] - 0.3)
        gap = 0.3 * au[26] * (1 - 0.3 * au[20]) + 0.13 * smile + 0.03 * au[20]
        parted = bow ** (0.5 + 0.3 * smile)
        top = line - (0.3 * gap + 0.055 * au[10] + 0.02 * au[9]) * parted
        bottom = line + (0.7 * gap + 0.055 * au[16]) * parted
        lip *= (1 - 0.65 * au[23]) * (1 - 0.25 * au[12]) * (1 - 0.25 * au[20])
        upper = top - 0.8 * lip * bow**0.7 * (1 - 0.3 * gaussian(along, 0.16))
        lower = bottom + lip * bow**0.6
        ends = self.fill(width - self.side)
        lips = self.skin * rgb(0.86, 0.6, 0.58)
        if self.appearance["makeup"] > 0.65:
            lips = lips + (rgb(0.72, 0.13, 0.2) - lips) * (self.appearance["makeup"] - 0.4)
        self.paint(lips * self.light * 0.93, self.fill(np.minimum(y - upper, line + 0.02 - y)) * ends)
        self.paint(lips * self.light, self.fill(np.minimum(y - line, lower - y)) * ends)
        inside = self.fill(np.minimum(y - top, bottom - y)) * ends
        self.paint(rgb(0.24, 0.07, 0.07), inside)
        tongue = norm(x / (0.62 * width), (y - _MOUTH - 0.75 * gap - 0.06) / 0.09)
        self.paint(rgb(0.68, 0.3, 0.3), inside * self.fill((1 - tongue) * 0.09) * min(1.0, 3 * gap))
        row = inside * self.fill(0.88 * width - self.side)
        self.paint(rgb(0.95, 0.93, 0.88) * (1 - 0.25 * along), row * self.fill(top + 0.085 - y))
        bared = min(1.0, 1.2 * au[16] + 0.8 * au[20])
        self.paint(rgb(0.85, 0.82, 0.77), row * self.fill(y - bottom + 0.05) * bared)
        closed = np.exp((top - bottom) / 0.03)
        self.paint(lips * 0.35, self.stroke(y - line, 0.01 + 0.008 * au[23] + 0.005 * au[15]) * ends * closed)

    def eyes(self) -> None:
        """Paint the eyeballs with iris and shadow, the lids and the lashes."""
        au, look, y = self.au, self.appearance, self.y
        width, middle = look["eye_width"], look["eye_distance"]
        along = (self.side - middle) / width
        bow = np.maximum(1 - along * along, 0)
        tilt = _EYES - (look["eye_slant"] - 0.05 * max(0.0, au[1] - au[2])) * along
        above = 1 + 0.75 * au[5] - (0.25 * au[4] + 0.25 * au[7]) * (1 - au[5]) - 0.35 * au[6] - 0.3 * au[9]
        below = 1 + 0.25 * au[5] * (1 - au[7]) - 0.4 * au[7] - 0.6 * au[6] - 0.4 * au[9]
        upper = tilt - 0.078 * look["eye_height"] * above * bow**0.75
        lower = tilt + 0.055 * look["eye_height"] * max(below, 0.0) * bow**0.8
        ball = self.fill(np.minimum(y - upper, lower - y)) * self.fill((1 - np.abs(along)) * width)
        shadow = 0.72 + 0.28 * np.clip((y - upper) / 0.06, 0, 1)  # of the upper lid
        self.paint(rgb(0.96, 0.95, 0.93) * shadow * np.sqrt(self.light), ball)
        away = self.x - np.where(self.x > 0, np.float32(middle), -np.float32(middle)) - 0.028 * look["gaze_x"]
        iris = norm(away, y - _EYES + 0.012 - 0.015 * look["gaze_y"])
        color = gradient_color(_IRIS, look["iris"])
        self.paint(color * (0.6 + 5 * iris), ball * self.fill(0.078 - iris))
        self.paint(color * 0.4, ball * self.stroke(iris - 0.074, 0.008))
        self.paint(rgb(0.04, 0.03, 0.03), ball * self.fill(0.036 - iris))
        glint = norm(away - math.copysign(0.026, look["light_x"]), y - _EYES + 0.04)
        self.paint(rgb(1, 1, 1), 0.9 * ball * self.fill(0.02 - glint))
        lids = np.abs(along) < 1
        lash = 0.013 + 0.012 * max(0.0, look["makeup"] - 0.4)
        self.paint(self.skin * 0.2, self.stroke(y - upper, lash) * lids)
        self.paint(self.skin * 0.5, 0.6 * self.stroke(y - lower, 0.008) * lids)
        fold = self.stroke(y - upper + 0.045 * (1 - 0.5 * au[4]), 0.008)
        self.paint(self.skin * 0.5 * self.light, 0.6 * fold * lids)

    def brows(self) -> None:
        au, look = self.au, self.appearance
        inner, outer = 0.12 - 0.035 * au[4], look["eye_distance"] + look["eye_width"] + 0.04
        along = np.clip((self.side - inner) / (outer - inner), 0, 1)
        middle = _EYES - look["brow_height"] + (0.03 * au[4] + 0.05 * au[9]) * (1 - au[1])
        height: Plane = middle - 0.05 * (1 + 0.5 * au[2]) * np.sin(np.pi * along**1.2)
        height += (0.14 * au[4] * (1 - au[1]) - 0.15 * au[1] + 0.04 * au[9]) * (1 - along) ** 1.5
        height += (0.03 - 0.11 * au[2] + 0.03 * au[4]) * along
        hairs = self.stroke(self.y - height, look["brow_thickness"] * (1 - 0.65 * along * along))
        ends = self.fill(np.minimum(self.side - inner, outer - self.side))
        dark = np.minimum(0.5 * self.hair, 0.42 * self.skin)  # keep them visible: they carry most of the expression
        self.paint(dark * (0.6 + 0.4 * self.light), 0.92 * hairs * ends)

    def strands(self) -> Plane:
        """Return the brightness of the hair: lit strands that run down from the parting."""
        look = self.appearance
        angle = 60 * np.arctan2(self.u - look["hair_part"], self.v + 1.6) + 4 * look["hair_wave"] * np.sin(7 * self.v)
        lamp = self.normal[0] * look["light_x"] - self.normal[1] * (0.3 - look["light_y"])
        bright: Plane = 0.95 + 0.07 * np.sin(angle) + 0.08 * np.sin(1.7 * angle + 1)
        return bright + 0.3 * look["light_strength"] * lamp

    def fringe(self) -> None:
        """Paint the hair over the skull and temples: none, shaved, short or long."""
        look, v, out = self.appearance, self.v, np.abs(self.u)
        if look["hair_length"] < 0.06:
            return
        shaved, long = look["hair_length"] < 0.16, look["hair_length"] > 0.62
        volume = 1.02 if shaved else look["hair_volume"]
        width = look["face_width"] * volume
        wave = look["hair_wave"] * np.sin(14 * np.arctan2(self.u, -v - 0.1))
        cap = self.fill((1.02 - norm(out / width, (v + 0.02) / (0.98 * volume)) + 0.02 * wave) * 0.9)
        away = np.abs(self.u - look["hair_part"])
        line = look["hair_line"] - 0.1 + 0.42 * away**1.4 + (0.05 + 0.05 * wave) * away
        grown = np.minimum(line + 2.2 * np.maximum(out - 0.78 * look["face_width"], 0), 0.1) - v
        if long:
            grown = np.maximum(grown, out - 0.88 * look["face_width"])
            cap = np.where(v > 0, self.fill(width - out), cap)
        self.paint(self.hair * self.strands(), (0.55 if shaved else 1.0) * cap * self.fill(grown))

    def glasses(self) -> None:
        """Paint glasses on a quarter of the faces, with frames from oval to square."""
        look = self.appearance
        if look["glasses"] > 0.25:
            return
        across, down = self.side - look["eye_distance"] - 0.01, self.y - _EYES - 0.03
        power = 2 + 3 * look["frame"]
        rim = ((np.abs(across) / 0.235) ** power + (np.abs(down) / 0.19) ** power) ** (1 / power)
        lens = self.fill((1 - rim) * 0.19)
        self.paint(rgb(0.95, 0.97, 1.0), (0.1 + 0.18 * gaussian(across + down - 0.08, 0.045)) * lens)
        half = 0.012 + 0.05 * look["glasses"]
        temple = self.stroke(down + 0.08, half) * (across > 0.22)
        bars = np.where(self.side < 0.2, self.stroke(down + 0.06, half), temple)
        metal = np.maximum(self.stroke((rim - 1) * 0.19, half), bars * (1 - lens))
        self.paint(gradient_color(_FRAMES, look["frame"]), metal * self.face)
