"""Which section of a trained network matters least: candidates and their scores (SPEC K6). The lowest score goes.

Everything is measured in eval mode, without augmentation, on the same images for all candidates. R is the representation of
the network, n×p: the input of its last dense layer; R_l that of the network without section l, not fine-tuned.

    cka          1 − CKA(R, R_l), linear, biased
    random       a uniform number, from the stream "prune/random"
    l1           mean |w| over the kernels of the section's path: their ℓ1 norm per weight, because stages differ in width
    activation   mean |path(h)| over images, channels and pixels: what the section adds
    kl           mean KL(softmax(logits) ‖ softmax(logits without l))
    rank         mean rank of path(h)'s feature maps, over their largest possible rank (after Lin et al. 2020, HRank)

and as controls, which nobody should prune by: "uncentred", 1 − ‖RᵀR_l‖²/(‖RᵀR‖ ‖R_lᵀR_l‖) without centring, and "distance",
‖R − R_l‖/‖R‖.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..arrays import Array, Arrays
from ..backend import Backend
from ..errors import InputError
from ..formulas.cka import Similarity, cka
from ..passes.finite import check_finite
from ..passes.predictor import Predictor
from ..passes.tape import forward
from ..spec.layers import Dense, Section
from ..spec.network import Network
from ..streams import Streams
from .candidates import candidates, with_layer_gates

#: Images of a batch in a plain pass.
BATCH = 100
#: Images of which "rank" takes the singular values of every feature map.
RANK_IMAGES = 100


# --------------------------------------------------------------------------------------------------------------------
# Representations


def classifier(network: Network) -> int:
    """Position of the last dense layer, whose input is the representation. InputError if the network does not end with one."""
    last = len(network.layers) - 1
    if last < 1 or not isinstance(network.layers[last], Dense):
        raise InputError("network: its last layer must be dense (the classifier, whose input is compared); it is not")
    return last


def representations(
    network: Network,
    backend: Backend,
    params: Mapping[str, Array],
    statistics: Mapping[str, Array],
    x: Array,
    names: list[str],
    *,
    batch_size: int = 250,
    advance: Callable[[int], None] = lambda done: None,
) -> tuple[Array, dict[str, Array]]:
    """R (n×p) and R_l for every section l of `names`, in the dtype of x.

    What lies before a section is computed once for all: half of the work, on average. advance: called with the images done.
    """
    gated, head = with_layer_gates(network, names), classifier(network)
    index = {group.name: group.start for group in gated.gate_groups}
    positions = [group.position for group in gated.gate_groups if group.name in names]
    on = np.ones(gated.gate_count)

    def predictor(gates: Array, start: int, stop: int) -> Predictor:
        return Predictor(gated, backend, params, statistics, gates, start=start, stop=stop)

    edges = [0, *positions, head]
    trunk = [predictor(on, a, b) for a, b in itertools.pairwise(edges)]
    tails = {}
    for position in positions:
        gates = on.copy()
        gates[index[gated.layers[position].name]] = 0.0
        tails[position] = predictor(gates, position, head)
    width = gated.input_shapes[gated.layers[head].name]
    full = np.empty((len(x), *width), x.dtype)
    lacking = {gated.layers[position].name: np.empty_like(full) for position in positions}
    for start in range(0, len(x), batch_size):
        rows = slice(start, start + batch_size)
        h = x[rows]
        for end, segment in zip(edges[1:], trunk, strict=True):
            h = segment(h)
            if end in tails:
                lacking[gated.layers[end].name][rows] = tails[end](h)
        full[rows] = h
        check_finite("the representations", h, network, backend, params, statistics, x[rows])
        advance(min(start + batch_size, len(x)))
    return full, lacking


# --------------------------------------------------------------------------------------------------------------------
# Scores


@dataclass(frozen=True)
class Subject:
    """A trained network, the images (n×input_shape) to judge it by, and what is drawn at random: seed and round."""

    network: Network
    backend: Backend
    params: Arrays
    statistics: Arrays
    x: Array
    seed: int = 0
    round: int = 0

    @cached_property
    def names(self) -> list[str]:
        return candidates(self.network)

    @cached_property
    def representations(self) -> tuple[Array, dict[str, Array]]:
        return representations(self.network, self.backend, self.params, self.statistics, self.x, self.names)

    @cached_property
    def sections(self) -> dict[str, Section]:
        return {e.name: e for e in self.network.layers if isinstance(e, Section) and e.name in self.names}


Scores = dict[str, float]


def cka_score(full: Array, lacking: Array, backend: Backend) -> float:
    """1 − CKA(R, R_l) (K6). InputError where there is no CKA (K7)."""
    found: Similarity = cka(full, lacking, estimator="biased", product=backend.cross_product)
    if found.value is None:
        raise InputError(f"representations: no CKA exists ({found.status})")
    return 1.0 - found.value


def cka_scores(subject: Subject) -> Scores:
    full, lacking = subject.representations
    return {name: cka_score(full, features, subject.backend) for name, features in lacking.items()}


def uncentred_score(full: Array, lacking: Array) -> float:
    """1 − ‖RᵀR_l‖²/(‖RᵀR‖ ‖R_lᵀR_l‖), Frobenius: a similarity of directions from 0, ruled by the means."""
    a, b = full.astype(np.float64), lacking.astype(np.float64)
    norms = (float(np.linalg.norm(m)) for m in (a.T @ a, b.T @ b))
    return 1.0 - float(np.linalg.norm(a.T @ b)) ** 2 / float(np.prod(list(norms)))


def distance_score(full: Array, lacking: Array) -> float:
    """‖R − R_l‖/‖R‖."""
    a = full.astype(np.float64)
    return float(np.linalg.norm(a - lacking) / np.linalg.norm(a))


def _random(subject: Subject) -> Scores:
    drawn = Streams(subject.seed).uniform("prune/random", subject.round, (len(subject.names),))
    return dict(zip(subject.names, map(float, drawn), strict=True))


def _l1(subject: Subject) -> Scores:
    def mean(section: Section) -> float:
        kernels = [subject.params[f"{e.name}.weight"] for e in section.path if "weight" in e.parameter_keys()]
        return float(sum(np.abs(w).sum(dtype=np.float64) for w in kernels) / sum(w.size for w in kernels))

    return {name: mean(section) for name, section in subject.sections.items()}


def _added(subject: Subject, images: int, measure: Callable[[Array], float]) -> Scores:
    """The mean over images of measure(path(h)), itself a mean over the images of a batch, for every candidate."""
    last = {section.path[-1].name: name for name, section in subject.sections.items()}
    x = subject.x[:images]
    totals = dict.fromkeys(subject.names, 0.0)

    def look(name: str, y: Array) -> None:
        if name in last:
            totals[last[name]] += measure(y) * len(y) / len(x)

    for start in range(0, len(x), BATCH):
        batch = x[start : start + BATCH]
        forward(subject.network, subject.backend, subject.params, batch, statistics=subject.statistics, observe=look)
    return totals


def _activation(subject: Subject) -> Scores:
    return _added(subject, len(subject.x), lambda y: float(np.abs(y).mean(dtype=np.float64)))


def _rank(subject: Subject) -> Scores:
    def share(y: Array) -> float:
        _check_maps(y.shape[1:])
        return float(np.linalg.matrix_rank(y).mean() / min(y.shape[2:]))

    return _added(subject, RANK_IMAGES, share)


def _kl(subject: Subject) -> Scores:
    head = classifier(subject.network)
    logits = Predictor(subject.network, subject.backend, subject.params, subject.statistics, start=head)
    full, lacking = subject.representations
    p = _log_softmax(logits(full))
    return {
        name: float((np.exp(p) * (p - _log_softmax(logits(features)))).sum(axis=1).mean()) for name, features in lacking.items()
    }


def _log_softmax(logits: Array) -> Array:
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    log_softmax: Array = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return log_softmax


CRITERIA: dict[str, Callable[[Subject], Scores]] = {
    "cka": cka_scores,
    "random": _random,
    "l1": _l1,
    "activation": _activation,
    "kl": _kl,
    "rank": _rank,
}


def check(criterion: str, network: Network, images: int) -> None:
    """InputError if the criterion cannot judge this network, or not by so many images (0: all)."""
    if criterion in ("cka", "kl"):
        classifier(network)
    if criterion == "cka" and images == 1:
        raise InputError("--score-images: CKA takes at least 2 images, got 1")
    if criterion == "rank":
        names = candidates(network)
        for section in (layer for layer in network.layers if isinstance(layer, Section) and layer.name in names):
            _check_maps(section.output_shape(network.input_shapes[section.name]))


def _check_maps(shape: tuple[int, ...]) -> None:
    if len(shape) != 3:
        raise InputError(f"criterion: 'rank' needs feature maps (channels, height, width), got {shape}")


def ranked(scores: Scores) -> tuple[str, float]:
    """The section that goes, the first of the lowest, and the margin to the second (inf if it is the only one).

    InputError if a score is NaN.
    """
    for name, score in scores.items():
        if np.isnan(score):
            raise InputError(f"criterion: section {name!r} has the score {score}; a number is needed to choose by")
    order = sorted(scores.values())
    return min(scores, key=lambda name: scores[name]), order[1] - order[0] if len(order) > 1 else float("inf")
