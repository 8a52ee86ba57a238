"""Mistakes in what a network costs, in the objective made of it and in what is reported (C)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays import Array
from ..gates.theta_penalty import Penalty, Reference, reference
from ..spec import cost
from ..spec.cost import CostModel, Term
from ..spec.network import Network
from .planting import Function, Mistake, field_of, instead, result


def terms_put(change: Callable[[Term, Any], Term]) -> Callable[[CostModel], CostModel]:
    """Every term put through change(term, pairs of it)."""
    return lambda m: dataclasses.replace(m, terms=tuple(change(t, int(n)) for t, n in zip(m.terms, m.pairs, strict=True)))


def _scaled(term: Term, factor: int) -> Term:
    return term._replace(parameters=term.parameters * factor, macs=term.macs * factor, flops=term.flops * factor)


def _columns_once(m: CostModel) -> CostModel:
    """Units that the layer in front has closed are paid for by the layer behind; right with all gates on."""
    sizes = np.append(np.bincount(m.groups, minlength=m.unit_groups + 1)[: m.unit_groups], 1)
    factors = [int(sizes[group]) for group in m.columns]
    terms = tuple(_scaled(term, n) for term, n in zip(m.terms, factors, strict=True))
    return dataclasses.replace(m, terms=terms, columns=np.full_like(m.columns, m.unit_groups), pairs=m.pairs / factors)


def _sections_kept(m: CostModel) -> CostModel:
    return dataclasses.replace(m, sections=np.full_like(m.sections, m.groups.size))


def _sections_on_weights(m: CostModel) -> CostModel:
    weight = np.array([term.part == "weight" for term in m.terms])
    return dataclasses.replace(m, sections=np.where(weight, m.sections, m.groups.size))


def _layer_gate_squared(self: CostModel, theta: Array) -> Array:
    """Once for the rows and once for the columns: right at every vertex."""
    rows, columns, sections = self._factors(theta)
    alive: Array = rows * columns * sections**2
    return alive


def _rows_side(self: CostModel, theta: Array, weights: Array) -> Array:
    """The gates on columns get nothing from there."""
    rows, columns, sections = self._factors(theta)
    of_groups, of_sections = np.zeros(self.unit_groups + 1), np.zeros(theta.size + 1)
    np.add.at(of_groups, self.rows, weights * columns * sections)
    np.add.at(of_sections, self.sections, weights * rows * columns)
    gradient: Array = np.where(self.is_layer, of_sections[:-1], of_groups[self.groups])
    return gradient


def _seen_as(**changes: Callable[[Penalty], Any]) -> Callable[[Function], Function]:
    """A method of Penalty on one with other fields."""
    return lambda f: lambda self, *a: f(dataclasses.replace(self, **{n: change(self) for n, change in changes.items()}), *a)


def _closed_elsewhere(f: Function) -> Function:
    """Gates at which a summand does not look count as closed."""
    return lambda self, theta: [(weight, np.where(seen, gates, 0.0), seen) for weight, gates, seen in f(self, theta)]


def _unweighted(f: Function) -> Function:
    """All summands of C3 that count, with weight 1."""
    return lambda self, theta: [(1.0, gates, seen) for _, gates, seen in f(self, theta)]


def _rebased(p: Penalty) -> Penalty:
    return dataclasses.replace(p, reference=reference(p.network))


def _of_weights(network: Network) -> Reference:
    return Reference(cost.macs(network), cost.parameters(network, parts=("weight",)))


def _nu_per_sample(f: Function) -> Function:
    return lambda state, config, samples: dataclasses.replace(f(state, config, samples), nu=config.objective.nu)


def _without_size(f: Function) -> Function:
    def wrong(state: Any, images: Any, config: Any, backend: Any) -> Any:
        return f(state, images, dataclasses.replace(config, objective=dataclasses.replace(config.objective, nu=0.0)), backend)

    return wrong


def _at_the_mode(f: Function) -> Function:
    return lambda network, theta, *a, **k: f(network, (theta >= 0.5).astype(np.float64), *a, **k)


def _start_forgotten(f: Function) -> Function:

    def wrong(state: Any, cut: Any) -> Any:
        return dataclasses.replace(f(state, cut), start=reference(cut.network))

    return wrong


COST = (
    Mistake(
        "batch-norm forgotten",
        "spec.cost:CostModel.weights",
        lambda f: lambda model, quantity, parts=cost.PARTS: f(model, quantity, set(parts) - {"norm"}),
        ("C1",),
    ),
    Mistake(
        "biases forgotten", "spec.cost:cost_model", result(terms_put(lambda t, n: _scaled(t, int(t.part != "bias")))), ("C1",)
    ),
    Mistake(
        "MACs of gated layers counted twice",
        "spec.cost:cost_model",
        result(terms_put(lambda t, n: t._replace(macs=t.macs * (1 + (t.rows is not None or t.columns is not None))))),
        ("C1",),
    ),
    Mistake("a shared group counted on one side", "spec.cost:cost_model", result(_columns_once), ("C1",)),
    Mistake(
        "emptied sections paid for",
        "spec.cost:cost_model",
        result(lambda m: dataclasses.replace(m, closers=np.zeros_like(m.closers))),
        ("C1",),
    ),
    Mistake("layer gate without effect on the cost", "spec.cost:cost_model", result(_sections_kept), ("C1",)),
    Mistake("layer gate on weights alone", "spec.cost:cost_model", result(_sections_on_weights), ("C1",)),
    Mistake("layer gate squared", "spec.cost:CostModel.alive", instead(_layer_gate_squared), ("C1",)),
    Mistake("slope of the rows' side alone", "spec.cost:CostModel.gradient", instead(_rows_side), ("C1",)),
    Mistake("slopes of the neighbouring gates", "spec.cost:CostModel.gradient", result(lambda g: np.roll(g, 1)), ("C1",)),
    Mistake(
        "slope of the cost with all gates on",
        "spec.cost:CostModel.gradient",
        lambda f: lambda model, theta, weights: f(model, np.ones_like(theta), weights),
        ("C1",),
    ),
    Mistake(
        "gates around grouped convolutions let through",
        "spec.unit_links:ungrouped_name",
        instead(lambda layer, gate: layer.name),
        ("C1",),
    ),
    Mistake("α and 1 − α swapped", "gates.theta_penalty:Penalty._weights", _seen_as(alpha=lambda p: 1.0 - p.alpha), ("C2",)),
    Mistake(
        "share of the pruned network in itself",
        "gates.theta_penalty:share",
        instead(lambda network, whole, alpha: 1.0),
        ("C2",),
    ),
    Mistake("reference without biases and norms", "gates.theta_penalty:reference", instead(_of_weights), ("C2",)),
    Mistake("ρ and 1 − ρ swapped", "gates.theta_penalty:Penalty._views", _seen_as(balance=lambda p: 1.0 - p.balance), ("C3",)),
    Mistake("gates of the other kind closed", "gates.theta_penalty:Penalty._views", _closed_elsewhere, ("C3",)),
    Mistake("summands of the balance unweighted", "gates.theta_penalty:Penalty._views", _unweighted, ("C3",)),
    Mistake(
        "gates that nothing presses on left open",
        "training.coefficients:pressed",
        instead(lambda network, config: network),
        ("C3",),
    ),
    Mistake("reference moved along with the pruning", "training.coefficients:penalty_of", result(_rebased), ("C5",)),
    Mistake("ν not divided by N", "training.coefficients:penalty_of", _nu_per_sample, ("C4",)),
    Mistake("vertices compared by the loss alone", "training.decide:decide", _without_size, ("C4",)),
    Mistake(
        "Σ β θ taken for ν R",
        "gates.theta_penalty:Penalty.value",
        instead(lambda p, t: p.gradient(t) @ t),
        ("C2", "C3", "C4", "C5"),
    ),
    Mistake(
        "slope at half of θ", "gates.theta_penalty:Penalty.gradient", lambda f: lambda p, theta: f(p, 0.5 * theta), ("C4", "C5")
    ),
    Mistake("start forgotten at a removal", "training.removal:cut_state", _start_forgotten, ("C5",)),
    Mistake(
        "1/N dropped in log γ", "formulas.hyper_prior:log_gamma_from_beta", instead(lambda beta, samples: -beta), ("O1", "C5")
    ),
    Mistake("rows of layers at the likelier gates", "spec.cost:expected_per_layer", _at_the_mode, ("C6",)),
    Mistake("one FLOP a multiply-accumulate", "spec.cost:flops", result(lambda n: n // 2), ("C6",)),
    Mistake("training counted as inference", "spec.cost:training_macs", result(lambda n: n // 3), ("C6",)),
    Mistake("backward passes not counted", "passes.tape:backward", field_of("macs", lambda n: 0), ("C6",)),
    Mistake("passes of `paired` not counted", "gates.estimators:paired", field_of("macs", lambda n: 0), ("C6",)),
    Mistake(
        "expected size at the likelier gates",
        "experiments.sizes:size_left",
        lambda f: lambda state, empty: f(dataclasses.replace(state, theta=np.round(state.theta)), empty),
        ("C6",),
    ),
)
