"""Backends and random networks on which the factors of refprune.rounding.tolerance were calibrated, and the calibration itself.

`python tests/calibration.py {oracle,sequential,torch,numba} {float32,float64} FIRST LAST` prints the largest error/tolerance
of that backend on the random networks FIRST … LAST−1, by kind of tensor.
"""

import collections
import dataclasses
import sys

import numpy as np
import torch_backend

from refprune.arrays import Saved
from refprune.backend import ORACLE, load_backend
from refprune.oracle import layers
from refprune.passes import parameters
from refprune.passes.batch_loss import BatchLoss
from refprune.rounding import tolerance
from refprune.rounding.tolerance import UNIT, network_tolerance
from refprune.spec.layers import (
    Activation,
    AveragePool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    MaxPool,
    Section,
    SubsamplePad,
    UnitGate,
)
from refprune.spec.network import Loss, Network
from refprune.streams import Streams

U = UNIT["float32"]


def rounded(a):
    """Numbers that float32 holds, as float64."""
    return np.asarray(a).astype(np.float32).astype(np.float64)


def sequential_sum(products, axes):
    """Σ over axes, one term after the other, in the dtype of `products`: what E2's model describes (np.cumsum does it)."""
    rest = [a for a in range(products.ndim) if a not in axes]
    flat = products.transpose(*rest, *axes).reshape(*(products.shape[a] for a in rest), -1)
    return np.cumsum(flat, axis=-1, dtype=products.dtype)[..., -1]


# A backend that sums in sequence: the least accurate of the correct ones -----------------------------------------------


def _channels(v, ndim):
    return v.reshape((1, -1) + (1,) * (ndim - 2))


def _axes(x):
    return (0, *range(2, x.ndim))


def _dense(x, w, b=None):
    y = sequential_sum(x[:, None, :] * w[None], (2,))
    return (y if b is None else y + b), Saved((x, w))


def _dense_vjp(saved, dy, *, input_gradient=True):
    x, w = saved.values
    dx = sequential_sum(dy[:, :, None] * w[None], (1,)) if input_gradient else None
    return dx, sequential_sum(dy[:, :, None] * x[:, None, :], (0,)), sequential_sum(dy, (0,))


def _patches(x, w, stride, padding, dilation, groups):
    """Per group, N×Ho×Wo×1×(C/groups·kh·kw)."""
    windows = layers._windows(layers.pad(x, padding), w.shape[2:], stride, dilation)
    for part in np.split(windows, groups, axis=1):
        p = part.transpose(0, 2, 3, 1, 4, 5)
        yield p.reshape(*p.shape[:3], 1, -1)


def _conv2d(x, w, b=None, *, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1):
    parts = zip(_patches(x, w, stride, padding, dilation, groups), np.split(w, groups), strict=True)
    y = np.concatenate([sequential_sum(p * wg.reshape(len(wg), -1), (4,)) for p, wg in parts], axis=-1).transpose(0, 3, 1, 2)
    return (y if b is None else y + _channels(b, 4)), Saved((x, w, stride, padding, dilation, groups))


def _conv2d_vjp(saved, dy, *, input_gradient=True):
    x, w, stride, padding, dilation, groups = saved.values
    parts = zip(_patches(x, w, stride, padding, dilation, groups), np.split(dy, groups, axis=1), strict=True)
    dw = [sequential_sum(p * g.transpose(0, 2, 3, 1)[..., None], (0, 1, 2)) for p, g in parts]
    dx = layers.conv2d_vjp(saved, dy, input_gradient=input_gradient)[0]
    return dx, np.concatenate(dw).reshape(w.shape), sequential_sum(dy, (0, 2, 3))


def _batch_norm(x, gain, bias, *, eps):
    """Also the other formula: x·f + (bias − m·f)."""
    n = x.dtype.type(x.size // x.shape[1])
    mean = sequential_sum(x, _axes(x)) / n
    centred = x - _channels(mean, x.ndim)
    variance = sequential_sum(centred * centred, _axes(x)) / n
    inverse = (1.0 / np.sqrt(variance + eps)).astype(x.dtype)
    f = inverse * gain
    y = x * _channels(f, x.ndim) + _channels(bias - mean * f, x.ndim)
    return y, Saved((centred * _channels(inverse, x.ndim), inverse, gain), statistics=(mean, variance))


def _batch_norm_vjp(saved, dy):
    normal, inverse, gain = saved.values
    n, nd = dy.dtype.type(dy.size // dy.shape[1]), dy.ndim
    db, dg = sequential_sum(dy, _axes(dy)), sequential_sum(dy * normal, _axes(dy))
    return (dy - _channels(db / n, nd) - normal * _channels(dg / n, nd)) * _channels(gain * inverse, nd), dg, db


def _batch_norm_eval_vjp(saved, dy):
    normal, inverse, gain = saved.values
    dgain = sequential_sum(dy * normal, _axes(dy))
    return dy * _channels(gain * inverse, dy.ndim), dgain, sequential_sum(dy, _axes(dy))


def _global_average_pool(x):
    return sequential_sum(x, (2, 3)) / x.dtype.type(x.shape[2] * x.shape[3]), Saved((x.shape,))


def _gate_vjp(saved, dy):
    x, g = saved.values
    return layers.gate_vjp(saved, dy)[0], sequential_sum(x * dy, tuple(range(x.ndim)) if g.ndim == 0 else _axes(x))


def _cross_entropy(logits, labels, *, reduction):
    _, saved = layers.cross_entropy(logits, labels, reduction=reduction)
    loss = sequential_sum(-saved.values[0][np.arange(len(labels)), labels], (0,))
    return np.asarray(loss / loss.dtype.type(len(labels) if reduction == "mean" else 1)), saved


SEQUENTIAL = dataclasses.replace(
    ORACLE,
    name="sequential",
    dense=_dense,
    dense_vjp=_dense_vjp,
    conv2d=_conv2d,
    conv2d_vjp=_conv2d_vjp,
    batch_norm=_batch_norm,
    batch_norm_vjp=_batch_norm_vjp,
    batch_norm_eval_vjp=_batch_norm_eval_vjp,
    global_average_pool=_global_average_pool,
    gate_vjp=_gate_vjp,
    cross_entropy=_cross_entropy,
)


# Random networks ------------------------------------------------------------------------------------------------------

ACTIVATIONS = ("relu",) * 6 + ("leaky_relu", "tanh", "sigmoid", "gelu", "gelu_tanh")
SAME = ((1, 1), (1, 1))


def random_case(seed):
    """A random network of 1 to 24 sections, dense or convolutional, with its batch loss and gates."""
    r = np.random.default_rng([7, seed])
    depth = int(r.choice([1, 2, 3, 4, 6, 8, 12, 24], p=[0.15, 0.15, 0.15, 0.15, 0.14, 0.12, 0.1, 0.04]))
    with_norm, images = r.integers(2), r.integers(2)
    n, classes, width = int(r.integers(2, 7)), int(r.integers(2, 11)), int(r.integers(2, 9) if images else r.integers(2, 40))

    def act():
        return Activation(str(r.choice(ACTIVATIONS)))

    def norm():
        return (BatchNorm(),) if with_norm and r.integers(4) else ()

    def affine(units, stride=(1, 1)):
        return Conv(units, (3, 3), stride, SAME, bias=bool(r.integers(2))) if images else Dense(units, bias=bool(r.integers(2)))

    def section():
        post = str(r.choice(("identity", "relu")))
        if r.integers(2):
            gates = (UnitGate(),) if r.integers(2) else ()
            path = (affine(int(r.integers(2, 2 * width + 1))), *norm(), act(), *gates, affine(width), *norm())
            return Section(path=path, post=post)
        place, last = str(r.choice(("path", "preactivation"))), Activation(str(r.choice(("relu", "tanh", "gelu"))))
        return Section(path=(affine(width), *norm(), last), gate_place=place, post=post)

    chain = [affine(width), *norm(), act()]
    if images:
        pools = (MaxPool((2, 2), (2, 2)), MaxPool((3, 3), (2, 2), SAME), AveragePool((3, 3), (2, 2), SAME, count_padding=False))
        chain += [[], [], *([p] for p in pools)][r.integers(5)]
        if r.integers(3) == 0:
            path = (affine(2 * width, (2, 2)), *norm(), act(), affine(2 * width), *norm())
            pads = SubsamplePad((2, 2), width // 2, width - width // 2)
            chain.append(Section(path=path, shortcut=(pads,) if r.integers(2) else (Conv(2 * width, (1, 1), (2, 2)), *norm())))
            width *= 2
    chain += [section() for _ in range(depth - 1)]
    if images:
        chain.append(GlobalAveragePool() if r.integers(2) else Flatten())
    entropy = bool(r.integers(4))
    loss = Loss() if entropy else Loss("mean_squared_error", str(r.choice(("mean", "batch_mean", "sum"))))
    size = int(r.integers(5, 11))
    shape = (int(r.integers(1, 4)), size, size) if images else (int(r.integers(1, 60)),)
    network = Network(shape, (*chain, Dense(classes)), loss)
    initial = parameters.initialise(network, Streams(seed), section_scale=float(r.choice((0.3, 1.0))))
    params = {k: rounded(v if k.endswith("weight") else v + 0.2 * r.standard_normal(v.shape)) for k, v in initial.items()}
    statistics = {
        k: rounded(v + (0.3 * r.standard_normal(v.shape) if k.endswith("mean") else r.uniform(-0.5, 1.5, v.shape)))
        for k, v in parameters.initial_statistics(network).items()
    }
    x = rounded(r.standard_normal((n, *network.input_shape)) + float(r.integers(4) == 0))
    target = r.integers(0, classes, n) if entropy else rounded(r.standard_normal((n, classes)))
    gates = (r.random(network.gate_count) < 0.8).astype(float) if r.integers(8) else rounded(r.random(network.gate_count))
    return BatchLoss(network, ORACLE, params, x, target, statistics, bool(r.integers(2))), gates


def tensors(loss, gates, branches=None, run_closed=False):
    """Name → what is judged."""
    return tolerance._tensors(loss, gates, branches, run_closed)


def candidate(loss, backend, dtype="float32"):
    def cast(arrays):
        return {name: a.astype(dtype) for name, a in arrays.items()}

    target = loss.target if loss.target.dtype.kind == "i" else loss.target.astype(dtype)
    return dataclasses.replace(
        loss,
        backend=backend,
        params=cast(loss.params),
        x=loss.x.astype(dtype),
        target=target,
        statistics=cast(loss.statistics),
    )


def flat(tolerance):
    single = {name: getattr(tolerance, name) for name in ("loss", "output", "gates", "input")}
    groups = {f"{group} {name}": t for group in ("params", "kinks") for name, t in getattr(tolerance, group).items()}
    return single | groups


def ratios(loss, gates, backend, dtype="float32", *, run_closed=False, **options):
    """Tensor → max error/tolerance of `backend` in `dtype`; at a kink both take its branches (E3). And: was there one?"""
    want, mine = tensors(loss, gates, None, run_closed)
    got, theirs = tensors(candidate(loss, backend, dtype), gates.astype(dtype), None, run_closed)
    branches = theirs.tape.branches
    kink = any(not np.array_equal(b, branches[name]) for name, b in mine.tape.branches.items())
    if kink:
        want, _ = tensors(loss, gates, branches, run_closed)
    tolerance = flat(network_tolerance(loss, gates, unit=UNIT[dtype], branches=branches, run_closed=run_closed, **options))
    found = {}
    for name, t in tolerance.items():
        error = np.abs(want[name] - got[name])
        found[name] = float(np.max(np.where(error == 0.0, 0.0, error / t), initial=0.0))
    return found, kink


BACKENDS = {
    "oracle": lambda: ORACLE,
    "sequential": lambda: SEQUENTIAL,
    "torch": lambda: torch_backend.TORCH,
    "numba": lambda: load_backend("numba"),
}


def calibrate(name, dtype, first, last):
    """Max error/tolerance of one backend over random networks."""
    backend, worst, kinks = BACKENDS[name](), collections.defaultdict(float), 0
    for seed in range(first, last):
        loss, gates = random_case(seed)
        found, kink = ratios(loss, gates, backend, dtype, run_closed=bool(seed % 2))
        kinks += kink
        for tensor, ratio in found.items():
            kind = tensor.rpartition(".")[2] if tensor.startswith("params") else tensor.split()[0]
            worst[kind] = max(worst[kind], ratio)
    print(f"{name} {dtype}: {last - first} cases, {kinks} kinks;", {k: round(v, 3) for k, v in sorted(worst.items())})


if __name__ == "__main__":
    calibrate(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
