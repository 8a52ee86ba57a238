"""G: layers and their hand-written gradients. Witnesses: complex step, loops from the definitions, step halving."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np

from ...arrays import Array
from ...spec.layers import Activation
from ..catalogue import OURS, Claim, Context, Finding, close, exact, worst
from ..witnesses.examples import convolutional_network, dense_network, loss_of

G1 = Claim(
    "G1",
    "Each backward is the vector-Jacobian product of its forward, for inputs, parameters and gates.",
    "f_vjp(d y) = {(∂f/∂x)}^T d y",
    OURS,
    (
        "oracle.layers:conv2d",
        *(
            f"oracle.layers:{name}"
            for name in ("dense_vjp", "conv2d_vjp", "batch_norm_vjp", "batch_norm_eval_vjp", "leaky_relu_vjp")
        ),
        *(f"oracle.layers:{name}" for name in ("tanh_vjp", "sigmoid_vjp", "gelu_vjp", "gelu_tanh_vjp", "max_pool_vjp")),
        *(f"oracle.layers:{name}" for name in ("average_pool_vjp", "global_average_pool_vjp", "add_vjp", "gate_vjp")),
        *(f"oracle.layers:{name}" for name in ("subsample_pad_vjp", "cross_entropy_vjp", "mean_squared_error_vjp")),
        "oracle.layers:weight_decay_vjp",
        "passes.tape:backward",
    ),
)
G2 = Claim(
    "G2",
    "Each forward accepts complex numbers, so that the complex step gives derivatives to 1e-14.",
    "f'(x) = \\frac{Im f(x + i h)}{h}, h = 10^{−200}",
    OURS,
    (
        "oracle.layers:sigmoid",
        "oracle.layers:tanh",
        "oracle.layers:gelu",
        "oracle.layers:gelu_tanh",
        "oracle.layers:batch_norm",
        "oracle.layers:max_pool",
        "oracle.layers:leaky_relu",
        "oracle.layers:cross_entropy",
    ),
)
G3 = Claim(
    "G3",
    "Kinks have a branch signature, by which a comparison tells a kink from a mistake.",
    "branch(x) ≠ branch(y) ⇒ kink",
    OURS,
    ("oracle.layers:leaky_relu", "oracle.layers:max_pool", "passes.tape:Tape.branches"),
)

STEP = 1e-200  # so small that the product of two perturbations underflows (erratum to G2)
ROUNDINGS = 64
GEOMETRY: dict[str, Any] = {"stride": (2, 1), "padding": ((1, 0), (2, 1)), "dilation": (1, 2), "groups": 2}
POOL: dict[str, Any] = {"kernel": (3, 2), "stride": (2, 2), "padding": ((1, 1), (0, 1))}


def _calls(context: Context) -> list[tuple[str, list[Array], dict[str, Any]]]:
    """Every function of a backend with arrays to differentiate and options."""

    def z(purpose: str, *shape: int) -> Array:
        return context.normal(f"G {purpose}", *shape)

    image, data = z("image", 3, 4, 6, 5), z("data", 5, 4)
    moments = [z("mean", 4), 0.5 + context.uniform("G var", 4)]
    calls: list[tuple[str, list[Array], dict[str, Any]]] = [
        ("dense", [data, z("w", 3, 4), z("b", 3)], {}),
        ("conv2d", [image, z("kernel", 6, 2, 3, 2), z("cb", 6)], GEOMETRY),
        ("batch_norm", [image, z("gain", 4), z("shift", 4)], {"eps": 1e-3}),
        ("batch_norm_eval", [image, z("gain", 4), z("shift", 4), *moments], {"eps": 1e-3}),
        ("leaky_relu", [data], {"slope": 0.1, "at_zero": 0.0}),
        ("max_pool", [image], {**POOL, "ties": "first"}),
        ("average_pool", [image], {**POOL, "count_padding": False}),
        ("average_pool", [image], {**POOL, "count_padding": True}),
        ("global_average_pool", [image], {}),
        ("flatten", [image], {}),
        ("subsample_pad", [image], {"stride": (2, 2), "before": 1, "after": 2}),
        ("add", [image, z("path", 3, 2, 6, 5)], {"channels": (3, 1)}),
        ("gate", [image, z("g", 4)], {}),
        ("gate", [image, np.array(0.7)], {}),
        ("mean_squared_error", [data, z("target", 5, 4)], {"reduction": "batch_mean"}),
        ("weight_decay", [data], {"strength": 0.3}),
    ]
    return calls + [(kind, [2.0 * data], {}) for kind in ("tanh", "sigmoid", "gelu", "gelu_tanh")]


@G1.witness("complex step of every function, every argument, random cotangent and direction")
def every_function_by_complex_step(context: Context) -> Finding:
    findings = []
    for name, arrays, options in _calls(context):
        f, f_vjp = getattr(context.backend, name), getattr(context.backend, f"{name}_vjp")
        y, saved = f(*arrays, **options)
        dy = context.normal(f"G1 {name}", *y.shape)
        differentiated = 1 if name == "mean_squared_error" else len(arrays) - (2 if name == "batch_norm_eval" else 0)
        for i, gradient in enumerate(f_vjp(saved, dy)[:differentiated]):
            direction = context.normal(f"G1 {name} {i}", *arrays[i].shape)
            moved = [a.astype(complex) for a in arrays]
            moved[i] = moved[i] + 1j * STEP * direction
            slope = (dy * np.imag(f(*moved, **options)[0])).sum() / STEP
            findings.append(close((gradient * direction).sum(), slope, np.abs(gradient * direction).sum() + 1e-3, ROUNDINGS))
    logits, labels = context.normal("G1 logits", 6, 4), np.array([0, 1, 2, 3, 1, 0])
    for reduction in ("mean", "sum"):
        _, saved = context.backend.cross_entropy(logits, labels, reduction=reduction)
        (gradient,) = context.backend.cross_entropy_vjp(saved, np.array(0.6))
        for entry in np.ndindex(*logits.shape):
            moved_logits = logits.astype(complex)
            moved_logits[entry] += 1j * STEP
            slope = 0.6 * np.imag(context.backend.cross_entropy(moved_logits, labels, reduction=reduction)[0]) / STEP
            findings.append(close(gradient[entry], slope, 1.0, ROUNDINGS))
    return worst(*findings)


@G1.witness("loops from the definitions: convolution, pools, batch-norm, losses")
def functions_by_loops(context: Context) -> Finding:
    calls = {name: (arrays, options) for name, arrays, options in _calls(context)}
    b, findings = context.backend, []

    def run(name: str, **changes: Any) -> Array:
        arrays, options = calls[name]
        y: Array = getattr(b, name)(*arrays, **(options | changes))[0]
        return y

    x, w, bias = calls["conv2d"][0]
    padded, got = np.pad(x, ((0, 0), (0, 0), (1, 0), (2, 1))), run("conv2d")
    for n, o, p, q in np.ndindex(*got.shape):
        total = bias[o]
        for c, i, j in itertools.product(range(2), range(3), range(2)):
            total += w[o, c, i, j] * padded[n, c + 2 * (o // 3), 2 * p + i, q + 2 * j]
        findings.append(close(got[n, o, p, q], total, 10.0, ROUNDINGS))
    top, mean, fair = run("max_pool"), run("average_pool", count_padding=True), run("average_pool", count_padding=False)
    for n, c, p, q in np.ndindex(*top.shape):
        rows, columns = range(max(0, 2 * p - 1), min(6, 2 * p + 2)), range(2 * q, min(5, 2 * q + 2))
        values = [float(x[n, c, i, j]) for i in rows for j in columns]
        findings.append(exact(int(top[n, c, p, q] != max(values))))
        findings.append(
            close([mean[n, c, p, q], fair[n, c, p, q]], [sum(values) / 6, sum(values) / len(values)], 5.0, ROUNDINGS)
        )
    y, (_, gain, shift) = run("batch_norm"), calls["batch_norm"][0]
    for c in range(4):
        values = [float(v) for v in x[:, c].ravel()]
        m = math.fsum(values) / len(values)
        v = math.fsum((a - m) ** 2 for a in values) / len(values)
        findings.append(close(y[:, c], (x[:, c] - m) / math.sqrt(v + 1e-3) * gain[c] + shift[c], 5.0, ROUNDINGS))
    a, t = calls["mean_squared_error"][0]
    errors = [math.fsum((float(p) - float(q)) ** 2 for p, q in zip(r, s, strict=True)) for r, s in zip(a, t, strict=True)]
    for reduction, error in (("sum", sum(errors)), ("batch_mean", sum(errors) / 5), ("mean", sum(errors) / 20)):
        findings.append(close(run("mean_squared_error", reduction=reduction), error, error, ROUNDINGS))
    losses = [math.log(math.fsum(math.exp(v) for v in r)) - float(r[k]) for r, k in zip(a, (0, 1, 2, 3, 1), strict=True)]
    got_loss = b.cross_entropy(a, np.array([0, 1, 2, 3, 1]), reduction="mean")[0]
    return worst(*findings, close(got_loss, sum(losses) / 5, 5.0, ROUNDINGS))


@G1.witness("whole networks: complex step through weights, input and gates")
def networks_by_complex_step(context: Context) -> Finding:
    findings = []
    for network in (dense_network(), convolutional_network("B")):
        loss = loss_of(network, context)
        gates = 0.2 + 0.6 * context.uniform("G1 gates", network.gate_count)
        found = loss.gradients(loss.evaluate(gates), input_gradient=True)
        d = {n: context.normal(f"G1n {n}", *p.shape) for n, p in loss.params.items()}
        dx, dg = context.normal("G1n x", *loss.x.shape), context.normal("G1n g", network.gate_count)
        assert found.input is not None
        parts = [(found.params[n] * d[n]).sum() for n in d] + [(found.input * dx).sum(), (found.gates * dg).sum()]
        for part in range(len(parts)):
            chosen = [*d, "x", "gates"][part]
            moved = {n: p + (1j * STEP * d[n] if n == chosen else 0j) for n, p in loss.params.items()}
            x = loss.x + (1j * STEP * dx if chosen == "x" else 0j)
            complexly = dataclasses.replace(loss, params=moved, x=x)
            at = gates + (1j * STEP * dg if chosen == "gates" else 0j)
            slope = float(np.imag(complexly.evaluate(at).loss)) / STEP
            findings.append(close(parts[part], slope, 10.0, ROUNDINGS))
    return worst(*findings)


@G2.witness("mpmath, 50 digits: derivatives of the activations by complex step of the code's forward")
def activations_in_fifty_digits(context: Context) -> Finding:
    import mpmath

    x = np.concatenate([np.linspace(-6, 6, 25), [1e-8, -1e-8]])
    formulas = {
        "tanh": mpmath.tanh,
        "sigmoid": lambda v: 1 / (1 + mpmath.exp(-v)),
        "gelu": lambda v: v * mpmath.ncdf(v),
        "gelu_tanh": lambda v: v / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (v + mpmath.mpf("0.044715") * v**3))),
    }
    findings = []
    for name, formula in formulas.items():
        y, _ = getattr(context.backend, name)(x)
        slope = np.imag(getattr(context.backend, name)(x + 1j * STEP)[0]) / STEP
        with mpmath.workdps(50):
            value = [float(formula(mpmath.mpf(float(v)))) for v in x]
            wanted = [float(mpmath.diff(formula, mpmath.mpf(float(v)))) for v in x]
        findings += [close(y, value, np.abs(x) + 1, 8), close(slope, wanted, np.abs(x) + 1, 16)]
    return worst(*findings)


@G2.witness("the known traps: modulus, order of complex numbers, overflow, −∞·(1+0j)")
def traps_of_the_complex_step(context: Context) -> Finding:
    b, wrong = context.backend, 0
    tall = np.array([[-800.0], [800.0]])
    for name in ("sigmoid", "tanh", "gelu_tanh"):
        for x in (tall, tall + 0.5j):
            wrong += int(not np.isfinite(getattr(b, name)(x)[0]).all())
    relu = b.leaky_relu(np.array([[-1.0 + 5j, 2.0 - 9j, -0.5 + 0j]]), slope=0.0, at_zero=0.0)[0]
    wrong += int(not np.array_equal(relu, [[0, 2 - 9j, 0]]))
    image = np.array([[[[1.0 + 0j, 1.0 + 7j], [0.5 + 99j, 0.0]]]])
    wrong += int(b.max_pool(image, kernel=(2, 2), stride=(2, 2), padding=((0, 0), (0, 0)), ties="first")[0].item() != 1.0)
    x, h = context.normal("G2", 6, 2), 1e-8
    one, two = np.ones(2), np.zeros(2)
    y = np.imag(b.batch_norm(x + 1j * STEP * x, one, two, eps=0.1)[0]) / STEP
    ends = [b.batch_norm(x * (1 + s * h), one, two, eps=0.1)[0] for s in (1, -1)]
    return worst(
        exact(wrong), Finding(float(np.abs(y - (ends[0] - ends[1]) / (2 * h)).max()), 1e-6, detail="central difference")
    )


@G3.witness("the signature is the sign of a ReLU's input and the place of a window's maximum")
def signature_names_the_branch(context: Context) -> Finding:
    b, wrong = context.backend, 0
    x = np.array([[-2.0, 0.0, 3.0, -0.0]])
    for at_zero in (0.0, 0.5, 1.0):
        _, saved = b.leaky_relu(x, slope=0.0, at_zero=at_zero)
        wrong += int((b.leaky_relu_vjp(saved, np.ones_like(x))[0] != [[0, at_zero, 1, at_zero]]).any())
        wrong += int((np.asarray(saved.branch) != [[-1, 0, 1, 0]]).any())
    tie = np.array([[[[1.0, 4.0], [4.0, 2.0]]]])
    for ties, place in (("first", 1), ("last", 2)):
        _, saved = b.max_pool(tie, kernel=(2, 2), stride=(2, 2), padding=((0, 0), (0, 0)), ties=ties)
        wrong += int(np.asarray(saved.branch).item() != place)
        wrong += int(b.max_pool_vjp(saved, np.ones((1, 1, 1, 1)))[0].ravel().argmax() != place)
    return exact(wrong)


@G3.witness("networks: a crossed kink changes the signature; a given signature is taken, one's own changes no bit")
def kinks_change_the_signature(context: Context) -> Finding:
    loss = loss_of(dense_network(), context)
    gates, wrong = np.ones(8), 0
    base = loss.evaluate(gates)
    kinds = {layer.name: layer for layer, _ in loss.network.placed() if isinstance(layer, Activation)}
    names = {n for n, layer in kinds.items() if layer.kind == "relu"} | {"section2.post"}
    wrong += set(base.tape.branches) != names
    far = dataclasses.replace(loss, x=loss.x + 2.0 * context.normal("G3", *loss.x.shape))
    free, frozen = far.evaluate(gates), far.evaluate(gates, branches=base.tape.branches)
    moved = any((free.tape.branches[n] != base.tape.branches[n]).any() for n in names)
    wrong += int(not moved) + int(free.loss == frozen.loss)
    wrong += sum(int((frozen.tape.branches[n] != base.tape.branches[n]).any()) for n in names)
    again = far.evaluate(gates, branches=free.tape.branches)
    return exact(wrong + int(again.loss != free.loss))
