"""Mistakes that drawing alone misses in whole networks: of builders, of surgery, of costs.

Each is right but for one thing, and each is found by what is asked in every run.
"""

import copy
import functools
import math

import numpy as np
import pytest
from wrong_in_one_thing import altered, only_found, outcome_of, right

import refprune
from refprune.errors import SpecError
from refprune.gates.surgery import prune
from refprune.spec.json_form import from_json
from refprune.spec.layers import AveragePool, Flatten, MaxPool, UnitGate


@pytest.fixture(autouse=True)
def _found_and_no_more(monkeypatch):
    only_found(monkeypatch)


# Builders of networks --------------------------------------------------------------------------------------------------


def rebuilt(method, change):
    """The right answer for a spec whose convolutions are changed, where such a network exists."""

    def wrong(a):
        def walk(part):
            if isinstance(part, list | tuple):
                return [walk(p) for p in part]
            if not isinstance(part, dict):
                return part
            part = {name: walk(value) for name, value in part.items()}
            return part | change(part) if part.get("type") == "Conv" else part

        spec = walk(a["spec"])
        try:
            from_json(spec)
            with np.errstate(all="ignore"):
                return right(method, a | {"spec": spec})
        except (SpecError, ValueError, refprune.InputError):
            return right(method, a)

    return wrong


def _undilated(conv):
    """The same size, without dilation: the padding is what a builder would take for it."""
    (kh, kw), (dh, dw), pads = conv["kernel"], conv["dilation"], conv["padding"]
    left = [[max(p - (k - 1) * (d - 1), 0), q] for k, d, (p, q) in zip((kh, kw), (dh, dw), pads, strict=True)]
    return {"dilation": [1, 1], "padding": left}


def _points_without_borders(a):
    """A 1×1 filter with padding as a product with the image, whose border lacks the bias."""
    answer = right("network", a)
    odd = [layer for layer in a["spec"]["layers"] if layer["type"] == "Conv" and list(layer["kernel"]) == [1, 1]]
    padded = [layer for layer in odd if np.any(layer["padding"]) and layer["bias"]]
    return answer | {"output": answer["output"] * 1.001} if padded else answer


BUILDERS = {
    "dilation forgotten": ("network", rebuilt("network", _undilated)),
    "padding of one side for both": (
        "network",
        rebuilt("network", lambda conv: {"padding": [sorted(side) for side in conv["padding"]]}),
    ),
    "padding's order": ("network", rebuilt("network", lambda conv: {"padding": [side[::-1] for side in conv["padding"]]})),
    "a 1×1 filter forgets its padding's bias": ("network", _points_without_borders),
}

# Surgery ---------------------------------------------------------------------------------------------------------------


def _removing(a, keep):
    """What `compact` gives where it removes other gates."""
    return right("compact", a | {"keep": keep})


def _groups(a):
    network = from_json(a["spec"])
    return network, [g for g in network.gate_groups if g.kind == "unit"]


def _interleaved(a):
    """Columns behind a flatten counted pixel by pixel instead of channel by channel."""
    network, groups = _groups(a)
    answer, names = right("compact", a), [layer.name for layer in network.layers]
    flattened = [layer.name for layer in network.layers if isinstance(layer, Flatten)]
    if not flattened or all(a["keep"][g.slice].all() for g in groups):
        return answer
    (after,) = (layer.name for layer in network.layers[names.index(flattened[0]) + 1 :][:1])
    weight, pixels = answer[f"params/{after}.weight"], math.prod(network.input_shapes[flattened[0]][1:])
    moved = weight.reshape(len(weight), -1, pixels).swapaxes(1, 2).reshape(weight.shape)
    return answer | {f"params/{after}.weight": moved}


def _sorted_channels(a):
    spec = copy.deepcopy(a["spec"])
    for layer in spec["layers"]:
        if layer.get("channels") and layer["type"] == "Section":
            layer["channels"] = sorted(layer["channels"])
    return right("compact", a | {"spec": spec})


def _one_stays(a):
    keep = a["keep"].copy()
    for g in _groups(a)[1]:
        if g.stop - g.start > 8 and not keep[g.slice].all():
            keep[g.stop - 1] = True
    return _removing(a, keep)


def _rescaled(a):
    """What is left of the last dense layer is divided by the share of units that are left, as after dropout."""
    network, groups = _groups(a)
    answer, head = right("compact", a), f"params/{network.layers[-1].name}.weight"
    cut = prune(network, a["keep"], fix=np.ones(a["keep"].shape, dtype=bool))
    share = cut.arrays(a["params"])[head.removeprefix("params/")].size / max(a["params"][head.removeprefix("params/")].size, 1)
    return answer | {head: answer[head] / share if share > 0.0 else answer[head]} if groups else answer


def _behind_pools(a):
    """Gates that follow a pool or a flatten are not found, so that their units stay."""
    network, keep = _groups(a)[0], a["keep"].copy()
    for before, layer in zip(network.layers, network.layers[1:], strict=False):
        if isinstance(layer, UnitGate) and isinstance(before, MaxPool | AveragePool | Flatten):
            keep[network.gate_slices[layer.name]] = True
    return _removing(a, keep)


SURGERY = {
    "columns behind a flatten interleaved": ("compact", _interleaved),
    "the stream's channels sorted": ("compact", _sorted_channels),
    "the last of many units stays": ("compact", _one_stays),
    "the next layer rescaled": ("compact", _rescaled),
    "gates behind pools not found": ("compact", _behind_pools),
    "just above the threshold": (
        "pruning_decision",
        lambda a: {"keep": (a["theta"] > a["threshold"]) & ~np.isclose(a["theta"], a["threshold"], rtol=1e-9, atol=1e-12)},
    ),
}

# Costs -----------------------------------------------------------------------------------------------------------------


def _square(conv):
    return {"kernel": [conv["kernel"][0]] * 2, "padding": [conv["padding"][0]] * 2, "dilation": [conv["dilation"][0]] * 2}


COSTS = {
    "multiply-accumulates without dilation": ("complexity", rebuilt("complexity", lambda conv: {"dilation": [1, 1]})),
    "k² for filters that are not square": ("complexity", rebuilt("complexity", _square)),
    "parameters in float32": ("complexity", altered("complexity", parameters=lambda n, a: n.astype(np.float32))),
    "multiply-accumulates in float32": ("complexity", altered("complexity", macs=lambda n, a: n.astype(np.float32))),
    "multiply-accumulates in 32 bits": (
        "complexity",
        altered("complexity", macs=lambda n, a: (n.astype(np.int64) + 2**31) % 2**32 - 2**31),
    ),
}

KINDS = {**BUILDERS, **SURGERY, **COSTS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_mistake_of_a_kind_that_drawing_misses_is_found(kind):
    method, wrong = KINDS[kind]
    outcome = outcome_of(method, wrong)
    assert outcome.verdict == "DEVIATES", outcome.tensors


@pytest.mark.parametrize("method", sorted({method for method, _ in KINDS.values()}))
def test_what_the_mistakes_are_made_of_is_right(method):
    assert outcome_of(method, functools.partial(right, method)).verdict == "conforms"
