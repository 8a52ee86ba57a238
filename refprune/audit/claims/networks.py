"""N: networks of sections. Witnesses: the formulas written out with matrices, correlation by SciPy, counts by hand."""

from __future__ import annotations

import dataclasses

import numpy as np

from ...arrays import Array
from ...errors import InputError
from ...gates.surgery import prune
from ...passes.batch_loss import BatchLoss
from ...passes.statistics import average_statistics
from ...passes.tape import forward
from ...spec import cost, zoo
from ...spec.layers import Activation, Conv, Dense, Section
from ...spec.network import Network
from ..catalogue import LP, OURS, Claim, Context, Finding, close, exact, worst
from ..witnesses.examples import convolutional_network, dense_network, loss_of, params_of

N1 = Claim(
    "N1",
    "A section adds a gated path to its shortcut; units are gated behind the activation.",
    "h^l = ρ(s^l(h^{l−1}) + ξ^l path^l(h^{l−1}))",
    LP,
    ("passes.tape:forward", "oracle.layers:add", "oracle.layers:gate", "oracle.layers:subsample_pad"),
)
N2 = Claim(
    "N2",
    "The single-matrix section: for ξ ∈ {0, 1} and a(0) = 0 the gate may stand on either side of the activation.",
    "h^l = s^l(h^{l−1}) + a(ξ^l W^l h^{l−1}), a(ξz) = ξ a(z)",
    LP,
    ("passes.tape:forward", "spec.layers:Section.gate_index"),
)
N3 = Claim(
    "N3",
    "A section with ξ = 0 is inert: no gradient of c reaches its path, and the smaller network computes the same.",
    "ξ^l = 0 ⇒ ∂c/∂W^l = 0, h^l = ρ(s^l(h^{l−1}))",
    LP,
    ("gates.surgery:prune", "gates.surgery:_is_nonnegative", "passes.tape:backward"),
)
N4 = Claim(
    "N4",
    "A unit with u = 0 goes with its row and its columns; masked and compact network agree forward and backward.",
    "u_j = 0 : A_{k+1} (u ⊙ a) = A_{k+1}^{(−j)} (u ⊙ a)^{(−j)}",
    OURS,
    ("gates.surgery:prune", "gates.surgery:Cut.arrays", "passes.statistics:average_statistics", "oracle.layers:batch_norm"),
)
N5 = Claim(
    "N5",
    "Shortcuts that change the shape keep the network connected when their path is pruned.",
    "ξ^l = 0 : h^l = ρ(s^l(h^{l−1})), s^l of option A or B",
    OURS,
    ("gates.surgery:prune", "oracle.layers:subsample_pad"),
)
N6 = Claim(
    "N6",
    "Exact counts of parameters and multiply-accumulates.",
    "LeNet-300-100 : 266610 | 266200, LeNet-5 : 431080 | 2293000",
    OURS,
    (
        "spec.cost:parameters",
        "spec.cost:macs",
        "spec.zoo:lenet_300_100",
        "spec.zoo:lenet5",
        "spec.zoo:resnet_cifar",
        "spec.zoo:vgg16",
    ),
)

ROUNDINGS = 64  # of the largest entry: the longest way through these networks has about as many operations


def _relu(x: Array) -> Array:
    return np.maximum(x, 0.0)


def _written_out(p: dict[str, Array], x: Array, gates: Array) -> Array:
    """`dense_network` as N1 writes it; batch-norm in train mode."""
    xi1, xi2, u, xi3 = gates[0], gates[1], gates[2:7], gates[7]

    def affine(name: str, h: Array) -> Array:
        return h @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    h = _relu(affine("dense1", x))
    h = h + xi1 * _relu(affine("section1.dense1", h))
    h = _relu(h + xi2 * affine("section2.dense2", u * np.tanh(affine("section2.dense1", h))))
    z = affine("section3.dense1", h)
    z = (z - z.mean(0)) / np.sqrt(((z - z.mean(0)) ** 2).mean(0) + 1e-5)
    h = affine("section3.shortcut.dense1", h) + xi3 * (z * p["section3.batchnorm1.gain"] + p["section3.batchnorm1.bias"])
    return affine("dense2", h)


@N1.witness("the formula written out with matrices, 40 gate vectors")
def residual_mlp_by_matrices(context: Context) -> Finding:
    loss = loss_of(dense_network(), context)
    vectors = (context.uniform("N1 gates", 40, 8) < 0.5).astype(float)
    got = np.stack([loss.evaluate(g).tape.output for g in vectors])
    want = np.stack([_written_out(dict(loss.params), loss.x, g) for g in vectors])
    return close(got, want, np.abs(want).max(), ROUNDINGS)


def _correlated(x: Array, w: Array, b: Array | None, stride: int, pad: int) -> Array:
    """A convolution layer by scipy.signal."""
    from scipy.signal import correlate2d

    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    y = np.array([[sum(correlate2d(i, k, "valid") for i, k in zip(image, o, strict=True)) for o in w] for image in padded])
    y = y[:, :, ::stride, ::stride]
    return np.asarray(y if b is None else y + b[:, None, None])


def _normalised(z: Array, gain: Array, bias: Array) -> Array:
    mean = z.mean((0, 2, 3), keepdims=True)
    variance = ((z - mean) ** 2).mean((0, 2, 3), keepdims=True)
    return np.asarray((z - mean) / np.sqrt(variance + 1e-5) * gain[:, None, None] + bias[:, None, None])


@N1.witness("scipy.signal: a convolutional network with shortcuts of option A and B")
def shortcuts_by_scipy(context: Context) -> Finding:
    findings = []
    for shortcut in "AB":
        loss = loss_of(convolutional_network(shortcut), context, batch=3)
        p = dict(loss.params)
        for gates in ((1.0, 1.0), (0.0, 1.0), (1.0, 0.0)):
            h = _relu(_correlated(loss.x, p["conv1.weight"], p["conv1.bias"], 1, 1))
            z = _correlated(h, p["section1.conv1.weight"], None, 1, 1)
            z = _relu(_normalised(z, p["section1.batchnorm1.gain"], p["section1.batchnorm1.bias"]))
            z = _correlated(z, p["section1.conv2.weight"], p["section1.conv2.bias"], 1, 1)
            h = _relu(h + gates[0] * _normalised(z, p["section1.batchnorm2.gain"], p["section1.batchnorm2.bias"]))
            z = _correlated(h, p["section2.conv1.weight"], p["section2.conv1.bias"], 2, 1)
            z = _normalised(z, p["section2.batchnorm1.gain"], p["section2.batchnorm1.bias"])
            if shortcut == "A":
                around = np.zeros_like(z)
                around[:, 1:4] = h[:, :, ::2, ::2]
            else:
                around = _correlated(h, p["section2.shortcut.conv1.weight"], None, 2, 0)
                around = _normalised(around, p["section2.shortcut.batchnorm1.gain"], p["section2.shortcut.batchnorm1.bias"])
            want = _relu(around + gates[1] * z).mean((2, 3)) @ p["dense1.weight"].T + p["dense1.bias"]
            got = loss.evaluate(np.array(gates)).tape.output
            findings.append(close(got, want, np.abs(want).max() + 1, ROUNDINGS))
    return worst(*findings)


def _placed(place: str, kind: str) -> Network:
    section = Section((Dense(4), Activation(kind)), gate_place=place)
    return Network((3,), (Dense(4), section, section, Dense(2)))


@N2.witness("both places of the gate give the same bits at every ξ ∈ {0, 1}")
def both_places_of_a_binary_gate_agree(context: Context) -> Finding:
    wrong = 0
    for kind in ("relu", "tanh", "gelu", "leaky_relu"):
        path, inside = (loss_of(_placed(place, kind), context) for place in ("path", "preactivation"))
        for code in range(4):
            gates = np.array([code & 1, code >> 1], dtype=float)
            wrong += int((path.evaluate(gates).tape.output != inside.evaluate(gates).tape.output).any())
    return exact(wrong)


@N2.witness("a(ξ W h) written out, ξ fractional: there the two places differ")
def places_of_a_fractional_gate_differ(context: Context) -> Finding:
    gates, findings, same = np.array([0.3, 0.7]), [], 0
    outputs = []
    for place in ("path", "preactivation"):
        loss = loss_of(_placed(place, "tanh"), context)
        p = dict(loss.params)
        h = loss.x @ p["dense1.weight"].T + p["dense1.bias"]
        for i, xi in enumerate(gates, 1):
            z = h @ p[f"section{i}.dense1.weight"].T + p[f"section{i}.dense1.bias"]
            h = h + (xi * np.tanh(z) if place == "path" else np.tanh(xi * z))
        want = h @ p["dense2.weight"].T + p["dense2.bias"]
        outputs.append(want)
        findings.append(close(loss.evaluate(gates).tape.output, want, np.abs(want).max(), ROUNDINGS))
    same += int(np.abs(outputs[0] - outputs[1]).max() < 1e-3)
    return worst(*findings, exact(same))


@N3.witness("ξ = 0: gradients of the path are exactly 0 and its weights do not matter")
def closed_gate_stops_the_path(context: Context) -> Finding:
    wrong = 0
    for network in (dense_network(), convolutional_network()):
        loss = loss_of(network, context)
        for group in network.gate_groups:
            if group.kind != "layer":
                continue
            gates = np.ones(network.gate_count)
            gates[group.slice] = 0.0
            base = loss.evaluate(gates)
            mine = [n for n in loss.params if n.startswith(f"{group.name}.") and ".shortcut." not in n]
            for run_closed in (False, True):
                gradients = loss.gradients(loss.evaluate(gates, run_closed=run_closed)).params
                wrong += sum(int((gradients[n] != 0).any()) for n in mine)
            shifted = {n: p + (n in mine) for n, p in loss.params.items()}
            wrong += int(dataclasses.replace(loss, params=shifted).evaluate(gates).loss != base.loss)
    return exact(wrong, "parameters with a gradient + losses that moved")


@N3.witness("the network without the section has the same bits as with ξ = 0, and counts less")
def closed_section_can_be_left_out(context: Context) -> Finding:
    wrong = 0
    for network in (dense_network(), convolutional_network("A"), convolutional_network("B")):
        loss = loss_of(network, context)
        for group in network.gate_groups:
            if group.kind == "layer":
                gates = np.ones(network.gate_count)
                gates[group.slice] = 0.0
                cut = prune(network, gates == 1.0)
                small = dataclasses.replace(loss, network=cut.network, params=cut.arrays(loss.params))
                left = small.evaluate(np.ones(cut.network.gate_count))
                wrong += int(left.loss != loss.evaluate(gates).loss)
                wrong += int(cost.parameters(cut.network) >= cost.parameters(network))
    return exact(wrong)


@N4.witness("masked ≡ compact: loss and all gradients, units removed one after the other")
def compact_network_equals_the_masked_one(context: Context) -> Finding:
    network = dense_network()
    loss, findings = loss_of(network, context), []
    units = next(g for g in network.gate_groups if g.kind == "unit")
    gates = np.ones(network.gate_count)
    for unit in range(units.start, units.stop - 1):
        gates[unit] = 0.0
        cut = prune(network, gates == 1.0)
        small = dataclasses.replace(loss, network=cut.network, params=cut.arrays(loss.params))
        masked, compact = loss.evaluate(gates), small.evaluate(np.ones(cut.network.gate_count))
        findings.append(close(compact.loss, masked.loss, 1.0, 16))
        g, small_g = cut.arrays(loss.gradients(masked).params), small.gradients(compact).params
        findings += [close(small_g[n], g[n], np.abs(g[n]).max() + 1e-3, ROUNDINGS) for n in g]
        rows = cut.arrays(loss.params)["section2.dense1.weight"].shape[0]
        findings.append(exact(int(rows != 5 - (unit - units.start + 1))))
    return worst(*findings)


@N4.witness("a section without units: 'close' drops its constant and says so, 'keep_constant' keeps it")
def section_without_units(context: Context) -> Finding:
    network = dense_network()
    loss = loss_of(network, context)
    gates = np.ones(8)
    gates[2:7] = 0.0
    kept, closed = (prune(network, gates == 1.0, empty=how) for how in ("keep_constant", "close"))
    masked = loss.evaluate(gates)
    with_constant = dataclasses.replace(loss, network=kept.network, params=kept.arrays(loss.params))
    same = close(with_constant.evaluate(np.ones(kept.network.gate_count)).loss, masked.loss, 1.0, 16)
    gates[1] = 0.0
    without = dataclasses.replace(loss, network=closed.network, params=closed.arrays(loss.params))
    off = close(without.evaluate(np.ones(closed.network.gate_count)).loss, loss.evaluate(gates).loss, 1.0, 16)
    return worst(same, off, exact(int(closed.closed_for_emptiness != ("section2",))))


@N4.witness("closed sections leave no statistics; re-estimation averages over the batches that hold a norm")
def closed_sections_leave_no_statistics(context: Context) -> Finding:
    network = convolutional_network()
    loss, wrong = loss_of(network, context), 0
    held = [loss.evaluate(np.array(g)).tape.batch_statistics for g in ((1.0, 1.0), (0.0, 1.0))]
    wrong += int("section1.batchnorm1" in held[1]) + int("section1.batchnorm1" not in held[0])
    new = average_statistics(network, dict(loss.statistics or {}), held)
    mean, variance, count = held[0]["section1.batchnorm1"]
    one = close(new["section1.batchnorm1.mean"], mean, np.abs(mean).max(), 4)
    two = close(new["section1.batchnorm1.variance"], variance * count / (count - 1), np.abs(variance).max(), 8)
    z = np.array([[0.0, 3.0], [1.0, 4.0], [5.0, 9.0]])
    statistics = context.backend.batch_norm(z, np.ones(2), np.zeros(2), eps=0.0)[1].statistics
    assert statistics is not None
    biased = close(statistics[1], [14 / 3, 62 / 9], 10.0, 4)
    try:
        context.backend.batch_norm(np.ones((1, 3)), np.ones(3), np.zeros(3), eps=1e-5)
        wrong += 1
    except InputError:
        pass
    return worst(one, two, biased, exact(wrong))


@N5.witness("behind a pruned section with option A or B the output still depends on every input pixel's channel")
def output_depends_on_every_input_channel(context: Context) -> Finding:
    wrong = 0
    for shortcut in "AB":
        network = convolutional_network(shortcut)
        cut = prune(network, np.array([True, False]))
        loss = loss_of(network, context)
        small = BatchLoss(cut.network, context.backend, cut.arrays(loss.params), loss.x, loss.target)
        gradient = small.gradients(small.evaluate(np.ones(1)), input_gradient=True).input
        assert gradient is not None
        wrong += int((np.abs(gradient).max(axis=(0, 2, 3)) == 0).sum())
        kinds = [type(layer).__name__ for layer in cut.network.layers]
        wrong += int(shortcut == "A" and "SubsamplePad" not in kinds) + int(shortcut == "B" and kinds.count("Conv") != 2)
    return exact(wrong)


@N5.witness("option A by indexing: every second pixel, zero channels around")
def option_a_by_indexing(context: Context) -> Finding:
    x = context.normal("N5", 2, 3, 5, 6)
    y, _ = context.backend.subsample_pad(x, stride=(2, 2), before=1, after=2)
    want = np.zeros((2, 6, 3, 3))
    for p in range(3):
        for q in range(3):
            want[:, 1:4, p, q] = x[:, :, 2 * p, 2 * q]
    return exact(int(y.shape != want.shape or (y != want).any()))


def _conv(i: int, o: int, k: int, pixels: int, bias: bool = True) -> tuple[int, int]:
    return i * o * k * k + o * bias, i * o * k * k * pixels


@N6.witness("the stated totals, added up layer by layer by hand")
def totals_by_hand(context: Context) -> Finding:
    lenet5 = [_conv(1, 20, 5, 576), _conv(20, 50, 5, 64), (800 * 500 + 500, 400_000), (5010, 5000)]
    wrong = 0
    for network, stated in (
        (zoo.lenet_300_100(), (266_610, 266_200)),
        (zoo.lenet5(), (431_080, 2_293_000)),
    ):
        wrong += (cost.parameters(network), cost.macs(network)) != stated
    wrong += tuple(map(sum, zip(*lenet5, strict=True))) != (431_080, 2_293_000)
    widths, sizes = [64, 64, 128, 128, *[256] * 3, *[512] * 6], [32, 32, 16, 16, *[8] * 3, *[4] * 3, *[2] * 3]
    vgg = [_conv(i, o, 3, s * s, False) for i, o, s in zip([3, *widths[:-1]], widths, sizes, strict=True)]
    vgg += [(2 * o, 0) for o in widths] + [(512 * 10 + 10, 5120)]
    found = cost.parameters(zoo.vgg16()), cost.macs(zoo.vgg16())
    wrong += tuple(map(sum, zip(*vgg, strict=True))) != found
    for depth in (20, 56):
        n = (depth - 2) // 6
        parts = [_conv(3, 16, 3, 1024, False), (32, 0), (650, 640)]
        for c, size in ((16, 1024), (32, 256), (64, 64)):
            first = _conv(c if c == 16 else c // 2, c, 3, size, False)
            parts += [first, *[_conv(c, c, 3, size, False)] * (2 * n - 1), (2 * n * 2 * c, 0)]
        network = zoo.resnet_cifar(depth)
        wrong += tuple(map(sum, zip(*parts, strict=True))) != (cost.parameters(network), cost.macs(network))
    return exact(wrong)


@N6.witness("parameters by the sizes of the arrays that are made, MACs by counting a forward pass")
def totals_by_counting(context: Context) -> Finding:
    wrong = 0
    for network in (dense_network(), convolutional_network("B"), zoo.lenet5()):
        params = params_of(network, context)
        wrong += sum(p.size for p in params.values()) != cost.parameters(network)
        x = context.normal("N6", 2, *network.input_shape)
        wrong += forward(network, context.backend, params, x, train=True).macs != 2 * cost.macs(network)
        convs = [(layer, shape) for layer, shape in network.placed() if isinstance(layer, Conv)]
        for layer, shape in convs:
            y, _ = context.backend.conv2d(
                np.ones((1, *shape)),
                np.ones(layer.parameter_shapes(shape)["weight"]),
                stride=layer.stride,
                padding=((0, 0), (0, 0)),
            )
            taps = layer.kernel[0] * layer.kernel[1] * shape[0]  # without padding every output sums all its taps
            wrong += int((y != taps).any())
    return exact(wrong)
