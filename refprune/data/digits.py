"""The embedded set `synthetic-digits`: 28×28 images of hand-drawn-looking digits, made from a seed alone.

A digit is a few strokes in the unit square (x to the right, y downwards). An image is made by placing points evenly
along the strokes, moving the points (smooth elastic field, then an affine map), letting each drop ink on a 56×56 grid,
and blurring that down to 28×28 pixels. All randomness is uniforms of Philox with key seed + (stream << 64), one row per
image, so the first k images do not depend on how many are made. Machines differ at most where the last bit of a `sin`,
`exp` or sum moves a pixel over a rounding border.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Floats = NDArray[np.float64]

SIZE = 28
CLASSES = 10
_GRID = 2 * SIZE
_POINTS = 144  # along the strokes of one digit
_EXTRA_POINTS = 20  # along the distractor stroke
_WAVES = 3  # of the elastic field, per axis
_BLOCK = 500  # images rendered at once, so that the working set stays in cache
_PARAMETERS = 15 + 6 * _WAVES


def _arc(cx: float, cy: float, rx: float, ry: float, start: float, end: float) -> Floats:
    """Points of an elliptic arc; angles in degrees, 0 to the right, growing clockwise as seen on the image."""
    angle = np.deg2rad(np.linspace(start, end, 33))
    return np.stack([cx + rx * np.cos(angle), cy + ry * np.sin(angle)], axis=1)


def _line(*corners: tuple[float, float]) -> Floats:
    return np.array(corners, dtype=np.float64)


def _variants() -> list[list[list[Floats]]]:
    """digit → ways of writing it → strokes → points (n, 2)."""
    return [
        [
            [_arc(0.5, 0.5, 0.28, 0.4, -90, 270)],
            [_arc(0.5, 0.5, 0.2, 0.4, -90, 270)],
            [_arc(0.5, 0.5, 0.27, 0.38, -60, 285)],
        ],
        [
            [_line((0.5, 0.1), (0.5, 0.9))],
            [_line((0.34, 0.26), (0.52, 0.1), (0.52, 0.9))],
            [_line((0.34, 0.26), (0.52, 0.1), (0.52, 0.9)), _line((0.34, 0.9), (0.7, 0.9))],
        ],
        [
            [np.concatenate([_arc(0.5, 0.34, 0.24, 0.24, 190, 400), _line((0.26, 0.88), (0.76, 0.88))])],
            [
                np.concatenate(
                    [_arc(0.48, 0.32, 0.22, 0.22, 200, 395), _arc(0.34, 0.8, 0.1, 0.08, 0, -290), _line((0.78, 0.88))]
                )
            ],
            [np.concatenate([_line((0.24, 0.14)), _arc(0.48, 0.34, 0.26, 0.22, -70, 45), _line((0.24, 0.88), (0.76, 0.84))])],
        ],
        [
            [np.concatenate([_arc(0.46, 0.3, 0.24, 0.2, 200, 450), _arc(0.46, 0.7, 0.27, 0.2, 270, 520)])],
            [np.concatenate([_line((0.26, 0.12), (0.7, 0.12), (0.48, 0.42)), _arc(0.46, 0.66, 0.26, 0.24, 275, 515)])],
            [np.concatenate([_arc(0.44, 0.3, 0.2, 0.19, 215, 430), _arc(0.44, 0.69, 0.3, 0.21, 280, 505)])],
        ],
        [
            [_line((0.3, 0.12), (0.26, 0.56), (0.76, 0.56)), _line((0.64, 0.14), (0.62, 0.9))],
            [_line((0.62, 0.9), (0.62, 0.1), (0.2, 0.64), (0.8, 0.64))],
            [_line((0.44, 0.1), (0.22, 0.54), (0.78, 0.5)), _line((0.64, 0.32), (0.56, 0.9))],
        ],
        [
            [np.concatenate([_line((0.72, 0.12), (0.34, 0.12), (0.3, 0.46)), _arc(0.46, 0.65, 0.27, 0.24, 235, 500)])],
            [
                np.concatenate([_line((0.34, 0.14), (0.32, 0.44)), _arc(0.46, 0.66, 0.26, 0.23, 240, 495)]),
                _line((0.34, 0.14), (0.76, 0.12)),
            ],
            [np.concatenate([_arc(0.6, 0.3, 0.26, 0.17, -50, -180), _arc(0.45, 0.67, 0.27, 0.22, 260, 510)])],
        ],
        [
            [np.concatenate([_arc(0.68, 0.56, 0.42, 0.46, 260, 180), _arc(0.5, 0.67, 0.24, 0.22, 180, 540)])],
            [np.concatenate([_line((0.56, 0.08), (0.34, 0.46)), _arc(0.5, 0.67, 0.22, 0.22, 205, 560)])],
            [np.concatenate([_arc(0.6, 0.5, 0.3, 0.4, 285, 100), _arc(0.52, 0.7, 0.2, 0.17, 90, -150)])],
        ],
        [
            [_line((0.22, 0.14), (0.76, 0.14), (0.42, 0.9))],
            [_line((0.22, 0.14), (0.76, 0.14), (0.42, 0.9)), _line((0.38, 0.52), (0.74, 0.5))],
            [np.concatenate([_line((0.24, 0.24), (0.26, 0.13), (0.74, 0.13)), _arc(0.98, 0.86, 0.48, 0.6, 235, 178)])],
        ],
        [
            [_arc(0.5, 0.3, 0.19, 0.19, 90, 450), _arc(0.5, 0.69, 0.24, 0.2, -90, 270)],
            [_arc(0.5, 0.29, 0.2, 0.2, 90, 450), _arc(0.5, 0.69, 0.2, 0.2, -90, 270)],
            [np.concatenate([_arc(0.5, 0.3, 0.22, 0.2, -30, -230), _arc(0.5, 0.7, 0.23, 0.2, -60, 200), _line((0.7, 0.2))])],
        ],
        [
            [_arc(0.48, 0.33, 0.22, 0.22, 0, 360), _line((0.7, 0.3), (0.66, 0.9))],
            [np.concatenate([_arc(0.48, 0.33, 0.22, 0.21, -20, -360), _arc(0.4, 0.5, 0.3, 0.4, -25, 110)])],
            [_arc(0.5, 0.32, 0.2, 0.22, -30, 330), _line((0.7, 0.14), (0.7, 0.36), (0.54, 0.9))],
        ],
    ]


def _spread(strokes: list[Floats], count: int) -> tuple[Floats, float]:
    """`count` points at equal distances along the strokes, and the length of stroke that each stands for."""
    starts = np.concatenate([stroke[:-1] for stroke in strokes])
    steps = np.concatenate([np.diff(stroke, axis=0) for stroke in strokes])
    lengths = np.hypot(steps[:, 0], steps[:, 1])
    ends = np.cumsum(lengths)
    at = (np.arange(count) + 0.5) * (ends[-1] / count)
    piece = np.searchsorted(ends, at)
    along = 1.0 - (ends[piece] - at) / lengths[piece]
    return starts[piece] + along[:, None] * steps[piece], float(ends[-1] / count)


@lru_cache(maxsize=1)
def _templates() -> tuple[Floats, Floats]:
    """Points (10, 3, _POINTS, 2) centred on 0, and the ink of one point (10, 3)."""
    spread = [[_spread(strokes, _POINTS) for strokes in ways] for ways in _variants()]
    points = np.array([[points for points, _ in ways] for ways in spread]) - 0.5
    ink = np.array([[ink for _, ink in ways] for ways in spread])
    return points, ink


def _between(u: Floats, low: float, high: float) -> Floats:
    out: Floats = low + (high - low) * u
    return out


def _elastic(points: Floats, u: Floats) -> Floats:
    """Adds a sum of plane waves to points (n, p, 2); u: (n, 6·_WAVES) uniforms for wave vector, phase and amplitude."""
    waves = u.reshape(len(u), 6, _WAVES, 1)
    kx, ky = _between(waves[:, 0], -7.0, 7.0), _between(waves[:, 1], -7.0, 7.0)
    phase = kx * points[:, None, :, 0] + ky * points[:, None, :, 1]
    dx = (_between(waves[:, 2], -0.045, 0.045) * np.sin(phase + 2 * np.pi * waves[:, 3])).sum(axis=1)
    dy = (_between(waves[:, 4], -0.045, 0.045) * np.sin(phase + 2 * np.pi * waves[:, 5])).sum(axis=1)
    moved: Floats = points + np.stack([dx, dy], axis=2)
    return moved


def _affine(points: Floats, u: Floats) -> Floats:
    """Stretches, shears, turns and shifts points (n, p, 2) by u: (n, 6) uniforms."""
    width, height = _between(u[:, 0], 0.65, 0.95), _between(u[:, 1], 0.72, 0.98)
    shear, angle = _between(u[:, 2], -0.3, 0.3), _between(u[:, 3], -0.25, 0.25)
    cos, sin = np.cos(angle), np.sin(angle)
    x = width[:, None] * points[:, :, 0] - (shear * height)[:, None] * points[:, :, 1]
    y = height[:, None] * points[:, :, 1]
    shift = _between(u[:, 4:6], -0.075, 0.075)
    return np.stack(
        [
            cos[:, None] * x - sin[:, None] * y + shift[:, :1],
            sin[:, None] * x + cos[:, None] * y + shift[:, 1:],
        ],
        axis=2,
    )


def _distractor(u: Floats) -> tuple[Floats, Floats]:
    """A short stroke off the middle, in two images of five, from u (n, 5): points (n, _EXTRA_POINTS, 2), ink each (n,)."""
    turn = 2 * np.pi * u[:, 0]
    centre = np.stack([np.cos(turn), np.sin(turn)], axis=1) * _between(u[:, 1:2], 0.3, 0.45)
    length, heading = _between(u[:, 2], 0.1, 0.25), np.pi * u[:, 3]
    along = (np.arange(_EXTRA_POINTS) + 0.5) / _EXTRA_POINTS - 0.5
    direction = np.stack([np.cos(heading), np.sin(heading)], axis=1) * length[:, None]
    points = centre[:, None, :] + along[:, None] * direction[:, None, :]
    return points, np.where(u[:, 4] < 0.4, length / _EXTRA_POINTS, 0.0)


def _splat(points: Floats, ink: Floats) -> Floats:
    """Shares the ink (n, p) of points (n, p, 2) among the four nearest cells of an (n, _GRID, _GRID) grid."""
    n = len(points)
    position = np.clip((points + 0.5) * _GRID - 0.5, 0.0, _GRID - 1.001)
    cell = position.astype(np.int64)
    right, down = np.moveaxis(position - cell, 2, 0)
    corner = (np.arange(n)[:, None] * _GRID + cell[:, :, 1]) * _GRID + cell[:, :, 0]
    grid = np.zeros(n * _GRID * _GRID)
    for offset, weight in (
        (0, (1 - right) * (1 - down)),
        (1, right * (1 - down)),
        (_GRID, (1 - right) * down),
        (_GRID + 1, right * down),
    ):
        grid += np.bincount((corner + offset).ravel(), (weight * ink).ravel(), minlength=grid.size)
    return grid.reshape(n, _GRID, _GRID)


def _blur(grid: Floats, radius: Floats) -> Floats:
    """Gaussian blur of standard deviation `radius` (n,) pixels, sampled at the (n, SIZE, SIZE) pixel centres."""
    pixel = np.arange(SIZE) + 0.5
    cell = (np.arange(_GRID) + 0.5) * (SIZE / _GRID)
    kernel = np.exp(-0.5 * ((pixel[:, None] - cell) / radius[:, None, None]) ** 2)
    return kernel @ grid @ kernel.transpose(0, 2, 1)


def _render(labels: NDArray[np.int64], u: Floats, noise: Floats) -> NDArray[np.uint8]:
    """Images (n, SIZE, SIZE) of the labels (n,), from uniforms u (n, _PARAMETERS) and noise (n, SIZE, SIZE)."""
    templates, template_ink = _templates()
    way = (u[:, 0] * templates.shape[1]).astype(np.int64)
    points = _affine(_elastic(templates[labels, way], u[:, 15:]), u[:, 1:7])
    extra, extra_ink = _distractor(u[:, 7:12])
    ink = np.concatenate(
        [
            np.broadcast_to(template_ink[labels, way][:, None], points.shape[:2]),
            np.broadcast_to(extra_ink[:, None], extra.shape[:2]),
        ],
        axis=1,
    )
    radius = _between(u[:, 12], 0.6, 1.15)
    density = _blur(_splat(np.concatenate([points, extra], axis=1), ink), radius)
    # The density on the axis of a long straight stroke with one unit of ink per unit of length.
    axis = np.sqrt(2 * np.pi) * radius / SIZE
    darkness = 1.0 - np.exp(-3.0 * (density / axis[:, None, None]) ** 2)
    strength = _between(u[:, 13], 0.65, 1.0)[:, None, None]
    amplitude = _between(u[:, 14], 0.05, 0.3)[:, None, None]
    image = strength * darkness + amplitude * (noise - 0.5)
    pixels: NDArray[np.uint8] = np.rint(255.0 * np.clip(image, 0.0, 1.0)).astype(np.uint8)
    return pixels


def _part(count: int, seed: int, part: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    shape, texture = (np.random.Generator(np.random.Philox(key=seed + (2 * part + k << 64))) for k in range(2))
    images = np.empty((count, 1, SIZE, SIZE), np.uint8)
    labels = np.empty(count, np.int64)
    for start in range(0, count, _BLOCK):
        rows = slice(start, min(start + _BLOCK, count))
        n = rows.stop - start
        u = shape.random((n, 1 + _PARAMETERS))
        labels[rows] = (u[:, 0] * CLASSES).astype(np.int64)
        images[rows, 0] = _render(labels[rows], u[:, 1:], texture.random((n, SIZE, SIZE)))
    return images, labels


def generate(
    n_train: int, n_test: int, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
    """Train images (n_train, 1, 28, 28) uint8, train labels (n_train,) int64, then the same for the test part.

    Labels are drawn independently and uniformly from 0..9. The test part depends on the seed but not on n_train.
    Raises InputError for counts below 1 and for a seed outside 0..2⁶⁴−1.
    """
    for argument, value in (("n_train", n_train), ("n_test", n_test)):
        if value < 1:
            raise InputError(f"generate: {argument} is {value}; allowed is 1 or more")
    if not 0 <= seed < 1 << 64:
        raise InputError(f"generate: seed is {seed}; allowed is 0 to 2**64 - 1")
    return *_part(n_train, seed, 0), *_part(n_test, seed, 1)
