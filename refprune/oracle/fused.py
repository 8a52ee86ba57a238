"""An affine map with what follows it in one call, for networks with fixed weights."""

from __future__ import annotations

from ..arrays import Array, Padding, Pair, per_channel
from .layers import conv2d, dense, leaky_relu

# --------------------------------------------------------------------------------------------------------------------
# Affine maps with an epilogue: inference only, so that there is nothing to save and no VJP


def dense_fused(x: Array, w: Array, scale: Array | None, shift: Array | None, *, relu: bool) -> Array:
    """y = relu?((x wᵀ)·scale + shift) with one scale and one shift per unit; None: 1 and 0."""
    return _epilogue(dense(x, w)[0], scale, shift, relu=relu)


def conv2d_fused(
    x: Array,
    w: Array,
    scale: Array | None,
    shift: Array | None,
    *,
    stride: Pair = (1, 1),
    padding: Padding = ((0, 0), (0, 0)),
    dilation: Pair = (1, 1),
    groups: int = 1,
    relu: bool,
) -> Array:
    """y = relu?((w ∗ x)·scale + shift), w ∗ x as in `conv2d`, with a scale and a shift per output channel; None: 1 and 0."""
    y, _ = conv2d(x, w, stride=stride, padding=padding, dilation=dilation, groups=groups)
    return _epilogue(y, scale, shift, relu=relu)


def _epilogue(y: Array, scale: Array | None, shift: Array | None, *, relu: bool) -> Array:
    if scale is not None:
        y = y * per_channel(scale, y.ndim)
    if shift is not None:
        y = y + per_channel(shift, y.ndim)
    return leaky_relu(y, slope=0.0, at_zero=0.0)[0] if relu else y
