"""Which gates go, and the network without them (N3, N4, D4, D6)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ...arrays import Array, Arrays
from ...backend import ORACLE, Backend
from ...gates import dynamics, rules, surgery
from ...gates.surgery import prune
from ...passes.batch_loss import BatchLoss
from ...passes.tape import forward
from ...rounding.watching import KinkInput, watching
from ...spec.json_form import from_json
from ...spec.layers import Section
from ...spec.network import Network
from ..asking.methods import Arguments, Description, Method, Question, fixed
from ..judging.traced import Traced, expectation
from ..judging.verdicts import Expectation
from ..strategies import networks as strategies
from ..strategies import sized_networks as sized
from ..strategies.structures import few
from .networks import asked_of, batch_of, layer_branches

#: Distance from the border of the domain of attraction, relative to the two summands, within which nothing is judged.
BORDER = 64.0


@st.composite
def _decisions(draw: st.DrawFn) -> Arguments:
    """θ on the threshold too."""
    threshold = draw(st.sampled_from((0.0, 0.125, 0.5)))
    theta = draw(st.lists(st.one_of(st.just(threshold), st.floats(0.0, 1.0, width=32)), min_size=1, max_size=6))
    return {"theta": np.array(theta), "threshold": threshold}


def _close_decisions(described: Description) -> list[Question]:
    """θ just above and just below the threshold, as near as the precisions go; more gates than a block has."""

    def close(threshold: float) -> Arguments:
        steps = 2.0 ** -np.array([4.0, 6.0, 10.0, 20.0, 22.0, 30.0, 45.0, 51.0])
        size = threshold or 1.0
        above, below = threshold + size * steps, threshold - threshold * steps
        return {"theta": np.concatenate([above, below, [threshold, 1e-30 * (threshold == 0.0), 1.0]]), "threshold": threshold}

    def many(sizes: tuple[int, ...]) -> Arguments:
        return {"theta": np.random.default_rng(described.seed).uniform(0.0, 1.0, sizes), "threshold": 0.5}

    questions = [fixed(close(at)) for at in (0.0, 0.125, 0.5)]
    return [*questions, *(Question(many, (n,), (1,)) for n in (9, 17, 33, 65, 129, 1025))]


@st.composite
def _states(draw: st.DrawFn) -> Arguments:
    n, seed = draw(st.integers(1, 6)), draw(st.integers(0, 2**32 - 1))
    return _around_the_saddle(n, seed, {name: draw(st.sampled_from(values)) for name, values in _RATES.items()})


def _many_states(described: Description) -> list[Question]:
    """Each combination of the rates, with more gates than a block has."""
    rates = [dict(zip(_RATES, values, strict=True)) for values in itertools.product(*_RATES.values())]

    def question(number: int, size: int, chosen: dict[str, float]) -> Question:
        return Question(lambda n: _around_the_saddle(n[0], 2**16 * described.seed + number, chosen), (size,), (1,))

    sizes = itertools.cycle((9, 17, 33, 65, 129))
    return [question(k, size, chosen) for k, (size, chosen) in enumerate(zip(sizes, rates, strict=False))]


def _around_the_saddle(n: int, seed: int, rates: dict[str, float]) -> Arguments:
    """Points of the plane (‖W‖, θ) around the saddle, half of them near the border of H: 2⁻³ … 2⁻¹² of their ‖W‖ away."""
    rng = np.random.default_rng(seed)
    kappa = np.exp(rng.uniform(-1.0, 1.0, n))
    w, theta = rates["beta"] / kappa * rng.uniform(0.0, 2.5, n), np.minimum(rng.uniform(0.0, 1.0, n), 1.0)
    slope = 0.5 * (rates["decay"] + np.sqrt(rates["decay"] ** 2 + 4.0 * rates["ratio"] * kappa**2))
    off = slope * (theta - rates["decay"] * rates["beta"] / kappa**2) / rates["ratio"]
    border = (rates["beta"] - off) / kappa * (1.0 + rng.choice((-1.0, 1.0), n) * 2.0 ** rng.integers(-12, -2, n))
    w = np.where((border > 0.0) & (rng.uniform(size=n) < 0.5), border, w)
    return {"w": w, "theta": theta, "kappa": kappa, **rates}


_RATES = {"beta": (0.125, 0.5), "decay": (0.0, 0.125, 1.0), "ratio": (0.0625, 1.0)}


def _attracted(arguments: Arguments, backend: Backend) -> Arrays:
    a = {name: value for name, value in arguments.items() if name not in ("w", "theta", "decay")}
    decay = np.full_like(arguments["w"], arguments["decay"])
    return {"attracted": dynamics.in_domain(arguments["w"], arguments["theta"], decay=decay, **a)}


def _attracted_expectation(arguments: Arguments, unit: float) -> Expectation:
    """Right on both sides within the rounding of the border: moved by that much either way, the answer must stay."""
    a, right = arguments, _attracted(arguments, ORACLE)["attracted"]
    room = BORDER * unit
    moved = []
    for by in (room, -room):
        there = {**a, "w": np.maximum(a["w"] * (1.0 + by) + by, 0.0), "theta": np.minimum(a["theta"] * (1.0 + by), 1.0)}
        moved.append(_attracted(there, ORACLE)["attracted"])
    undecided = (moved[0] != right) | (moved[1] != right)
    return Expectation({"attracted": right}, {"attracted": undecided * 1.0})


@st.composite
def _removals(draw: st.DrawFn, cases: st.SearchStrategy[strategies.Case]) -> Arguments:
    """Any gates but the last unit of a plain layer, or of one inside a section without a gate.

    A gated section that loses all units of a layer is closed; whether an ungated one keeps its constant is left open (N4).
    """
    case = draw(cases)
    keep = _allowed(case.network, case.gates > 0.0)
    if draw(st.integers(0, 3)) == 0:
        keep = _emptied_sections(case.network, keep)
    return _removing(case, keep)


def _removing(case: strategies.Case, keep: Array) -> Arguments:
    arguments = batch_of(case) | {"keep": keep, "train": case.train}
    del arguments["target"]
    return arguments


def _standing_removals(described: Description) -> list[Question]:
    """Every pattern of removals from every sized network that has gates."""
    questions = []
    for number, recipe in enumerate((*sized.DENSE, *sized.IMAGES, *sized.FIXED)):
        network = sized.case(recipe, recipe.sizes, 0, described.conventions).network
        for pattern in range(len(sized.removals(network))):

            def removing(case: strategies.Case, pattern: int = pattern) -> Arguments:
                masks = sized.removals(case.network)  # fewer where a smaller network has fewer patterns
                return _removing(case, _allowed(case.network, masks[min(pattern, len(masks) - 1)]))

            questions.append(asked_of(recipe, number, described, removing))
    return questions


def _allowed(network: Network, keep: Array) -> Array:
    """`keep` (G,), but what must not go all (`_removals`)."""
    return _spare_ungated_sections(network, surgery.spare_plain_layers(network, keep, np.ones(network.gate_count)))


def _spare_ungated_sections(network: Network, keep: Array) -> Array:
    """`keep` (G,), but the units that a layer of an ungated section reads never go all."""
    keep = keep.copy()
    for group in network.gate_groups:
        if group.kind == "unit" and not keep[group.slice].any():
            inside = group.name not in {layer.name for layer in network.layers}
            gated = network.layers[group.position].name in network.gate_slices
            if inside and not gated and network.unit_links[group.name].consumer is not None:
                keep[group.start] = True
    return keep


def _draw(described: Description) -> st.SearchStrategy[Arguments]:
    options: dict[str, Any] = {"gates": ("random", "random", "ones"), "conventions": described.conventions}
    cases = st.one_of(strategies.gated_cases(**options), strategies.gated_cases(unit_gates=True, **options))
    return _removals(few(cases, described.structures, described.seed))


def _emptied_sections(network: Network, keep: Array) -> Array:
    """`keep` (G,), but no unit stays in gated sections: by chance alone that is rare."""
    keep = keep.copy()
    for group in network.gate_groups:
        holder = network.layers[group.position]
        if group.kind == "unit" and isinstance(holder, Section) and holder.gate:
            keep[group.slice] = False
    return keep


def _compacted(arguments: Arguments, backend: Backend) -> Arrays:
    """The smaller network, run; mistakes in the surgery show here."""
    a, network = arguments, from_json(arguments["spec"])
    cut = prune(network, a["keep"], fix=np.ones(a["keep"].shape, dtype=bool))
    left = cut.arrays(a["params"])
    tape = forward(cut.network, backend, left, a["x"], statistics=cut.arrays(a["statistics"]), train=a["train"])
    found = {"output": tape.output, "parameters": np.asarray(float(sum(p.size for p in left.values())))}
    return found | {f"params/{name}": p for name, p in left.items()}


def _run(arguments: Arguments, backend: Backend, branches: Mapping[str, Array]) -> Traced:
    """The masked network's output, sections without units closed, and what the smaller one holds."""
    a, network, keep = arguments, from_json(arguments["spec"]), arguments["keep"]
    cut = prune(network, keep, fix=np.ones(keep.shape, dtype=bool))
    gates = keep * 1.0
    for name in cut.closed_for_emptiness:
        if name in network.gate_slices:
            gates[network.gate_slices[name]] = 0.0
    seen: list[KinkInput] = []
    (outputs,) = network.output_shape
    labels = network.loss.kind == "cross_entropy"
    target = np.zeros(len(a["x"]), dtype=np.int64) if labels else np.zeros((len(a["x"]), outputs))
    loss = BatchLoss(network, watching(backend, seen), a["params"], a["x"], target, a["statistics"], a["train"])
    tape = loss.evaluate(gates, run_closed=True, branches=branches).tape
    left = cut.arrays(a["params"])
    tensors = {"output": tape.output, "parameters": np.asarray(float(sum(p.size for p in left.values())))}
    tensors |= {f"params/{name}": p for name, p in left.items()}
    names = {name: f"branches/{name}" for name in tape.branches}
    inputs = {names[name]: into for name, into in zip(tape.branches, seen, strict=True)}
    return Traced(tensors, {names[name]: branch for name, branch in tape.branches.items()}, inputs, {})


METHODS: tuple[Method, ...] = (
    Method(
        "pruning_decision",
        "pruning",
        ("keep",),
        lambda described: _decisions(),
        lambda a, backend: {"keep": rules.above(a["theta"], a["threshold"])},
        lambda a, unit: Expectation({"keep": a["theta"] > a["threshold"]}, {"keep": np.zeros(a["theta"].shape)}),
        standing=_close_decisions,
    ),
    Method(
        "attracted",
        "pruning",
        ("attracted",),
        lambda described: _states(),
        _attracted,
        _attracted_expectation,
        standing=_many_states,
    ),
    Method(
        "compact",
        "pruning",
        (),
        _draw,
        _compacted,
        lambda arguments, unit: expectation(lambda b, taken: _run(arguments, b, layer_branches(taken)), unit),
        2.0,
        _standing_removals,
    ),
)
