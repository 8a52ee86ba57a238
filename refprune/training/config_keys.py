"""The keys of an experiment: default, allowed values and meaning of each.

A field of the dataclasses below is a key of the file; its metadata says what is allowed. Reading and checking are in `config`;
docs/config.md and `refprune zoo --keys` are written from here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ..backend import NAMES
from ..gates.estimators import ESTIMATORS
from ..spec import zoo
from ..spec.network import Network

SCHEDULES = ("constant", "cosine", "one_cycle", "warmup_stable_decay", "robbins_monro")


@dataclass(frozen=True)
class Interval:
    """The numbers from `low`, which belongs to it, to `high`, which belongs to it if `closed`."""

    low: float
    high: float = math.inf
    closed: bool = False

    def __contains__(self, number: float) -> bool:
        return self.low <= number < self.high or (self.closed and number == self.high)

    def __str__(self) -> str:
        return f"[{self.low}, {self.high}{']' if self.closed else ')'}"


def key(default: Any, meaning: str, *, choices: tuple[str, ...] = (), interval: Interval | None = None) -> Any:
    """A dataclass field with its meaning and what is allowed: one of `choices`, or a number in `interval`."""
    return field(default=default, metadata={"meaning": meaning, "choices": choices, "interval": interval})


COUNT, POSITIVE_COUNT = Interval(0), Interval(1)
NONNEGATIVE, SHARE, HALF = Interval(0.0), Interval(0.0, 1.0, closed=True), Interval(0.0, 0.5, closed=True)


@dataclass(frozen=True)
class Data:
    """The images: which set, how many of them, how they are changed in training. Test images are never changed."""

    name: str = key(
        "synthetic-digits",
        'The image set: one of `refprune data list`, or "folder:PATH@SIZE" for images in PATH/train/CLASS and PATH/val/CLASS, '
        "cut to SIZE×SIZE pixels. A relative PATH starts at the folder of the data sets.",
    )
    train_limit: int = key(0, "How many training images are used, counted from the first; 0 uses all.", interval=COUNT)
    holdout: int = key(
        0,
        "How many of the training images are held out: the last ones. They are not trained on and replace the test images, so "
        "that a recipe can be chosen without the test set. 0 holds out none.",
        interval=COUNT,
    )
    augmentation: str = key(
        "none",
        '"crop_flip" pads every training image, takes a random crop of the original size and mirrors it with probability ½. '
        '"none" leaves the images as they are.',
        choices=("none", "crop_flip"),
    )
    padding: int = key(4, "Pixels of zeros (the mean) that crop_flip adds on each side.", interval=COUNT)


@dataclass(frozen=True)
class Objective:
    """What training minimises: J = C(W, θ) + ½ λ ‖W‖² + Σ β θ + ν R_ρ(θ) (O1, C4). C is the expected loss over the gates."""

    beta: float = key(
        0.0, "β, the price of an open gate. It is the same for every gate, whatever the gate costs.", interval=NONNEGATIVE
    )
    nu: float = key(
        0.0,
        "ν, the price of the network's size. It multiplies R_ρ(θ), the expected share of MACs and parameters that is left "
        "(C4). 0 ignores size.",
        interval=NONNEGATIVE,
    )
    alpha: float = key(
        0.5, "α, the meaning of size: R = α·(share of MACs) + (1 − α)·(share of parameters) (C2).", interval=SHARE
    )
    balance: float = key(
        0.5,
        "ρ, the gates that R_ρ counts: ½ gives the expected share itself, 1 counts layer gates only, 0 unit gates only (C3). "
        "At 0 and 1, if beta is 0, the other kind of gates is fixed to 1.",
        interval=SHARE,
    )
    weight_decay: float = key(0.0, "λ, the strength of weight decay.", interval=NONNEGATIVE)
    per: str = key(
        "sample",
        'What beta, nu and weight_decay refer to. "sample" puts them into J as they are. "data_set" divides all three by the '
        "number N of training images: beta is then −log γ (F3), and weight_decay the λ of P4.",
        choices=("sample", "data_set"),
    )
    decay: str = key(
        "all",
        'The arrays that weight decay acts on: "all" as in PyTorch, or "weights", which leaves out biases and batch-norm.',
        choices=("all", "weights"),
    )


@dataclass(frozen=True)
class Gates:
    """The gate probabilities θ: where they start, how they move, when a gate is removed. τ is the threshold, η_θ the rate."""

    initial: float = key(0.5, "θ₀, the value of every θ at the start. It must exceed threshold.", interval=SHARE)
    learning_rate: float = key(0.05, "η_θ, the learning rate of θ. The schedule multiplies it.", interval=NONNEGATIVE)
    unit_learning_rate: float = key(
        0.0,
        "u. If u > 0, a unit gate in a group with n units left has η_θ = u·n. The gradient for one of n units is about 1/n of "
        "a layer's, so that groups of all sizes then move equally fast. 0 uses learning_rate for unit gates too.",
        interval=NONNEGATIVE,
    )
    removal_every: int = key(1, "Steps between two checks of the removal rule.", interval=POSITIVE_COUNT)
    estimator: str = key(
        "taylor",
        'How ∂C/∂θ is estimated (O5). "taylor" is ∂c/∂ξ: biased, no extra pass. "paired" is unbiased and takes one partial '
        'forward pass for each gate. "reinforce", "arm" and "disarm" are unbiased and noisy, and need floor > 0. "exact" '
        "evaluates all 2^G gate vectors, for at most 20 gates.",
        choices=tuple(ESTIMATORS),
    )
    gate_samples: int = key(
        1, "K, how many gate vectors reinforce draws in each step. The other estimators take 1.", interval=POSITIVE_COUNT
    )
    paired_epochs: float = key(
        0.0,
        "For how many epochs before all gates are decided the estimator is paired. taylor's bias can hold a θ between 0 and 1 "
        "if the loss falls steeply at ξ = 0 and rises at ξ = 1.",
        interval=NONNEGATIVE,
    )
    warmup_epochs: float = key(
        0.0, "Epochs at the start during which θ stays at initial and no gate is removed.", interval=NONNEGATIVE
    )
    threshold: float = key(
        0.0,
        "τ. A gate with θ ≤ τ is removed for good. When all gates are decided, those with θ ≥ 1 − τ are fixed to 1. "
        "τ = ½ leaves no gate undecided; the summary reports how far θ was rounded.",
        interval=HALF,
    )
    floor: float = key(
        0.0,
        "δ. Every step projects θ to [δ, 1 − δ] (O6). reinforce, arm and disarm need δ > 0. δ must not exceed threshold.",
        interval=HALF,
    )
    undecided: str = key(
        "compare",
        'What happens to gates with τ < θ < 1 − τ when all gates are decided. "compare" evaluates J with each gate closed and '
        'open on training data and takes the better (O9). "continue" trains on, to at most max_epochs.',
        choices=("compare", "continue"),
    )
    compare_at_most: int = key(
        32,
        "If more gates than this are undecided, their unit gates are decided all at once, from a first-order estimate of J.",
        interval=COUNT,
    )
    max_epochs: int = key(
        0, 'The largest number of epochs under undecided = "continue". At least training.epochs.', interval=COUNT
    )
    decide_epoch: int = key(
        0,
        "The epoch at whose end all gates are decided. The other epochs train the smaller network without gates. "
        "0 decides at the end of training.",
        interval=COUNT,
    )
    magnitude: float = key(
        0.0,
        "The baseline without θ: the share of every group's units that is removed at the end of magnitude_epoch, those with "
        "the smallest ℓ1 norm. The network is then fine-tuned. initial must be 1. 0 turns the baseline off.",
        interval=SHARE,
    )
    magnitude_epoch: int = key(1, "The epoch at whose end the baseline removes units.", interval=POSITIVE_COUNT)
    empty: str = key(
        "close",
        'What happens to a section when one of its layers has lost all units. "close" removes the section. "keep_constant" '
        "keeps the constant that its path still adds.",
        choices=("close", "keep_constant"),
    )
    evaluation: str = key(
        "mode",
        'The gates with which an epoch is tested while θ is between 0 and 1 (O9): "mode" (open if θ ≥ ½), "mean" (ξ = θ) or '
        '"sampled" (ξ drawn with probability θ).',
        choices=("mode", "mean", "sampled"),
    )
    protect: tuple[str, ...] = key((), 'Names of gate groups that are fixed to 1 from the start, as in ["section3"].')
    rule: str = key(
        "threshold",
        'When a gate is removed (D6). "threshold": θ ≤ τ. "attraction": θ and the norm of the gate\'s weights lie in the '
        "region from which θ provably goes to 0, for small steps, an unbiased estimator and the true κ (D4). taylor is allowed "
        "where nothing but ReLU, leaky ReLU or pooling stands between a gate and the weights that close it (D9). "
        '"both": both must hold. The last two need objective.beta > 0, and they fire only with weight decay or weights near 0. '
        "If objective.nu > 0, beta is a lower bound of the price of a gate (C5).",
        choices=("threshold", "attraction", "both"),
    )
    kappa_factor: float = key(
        2.0,
        "κ, which the rule attraction needs, bounds the loss's slope in a gate's weights. It is estimated as this factor times "
        "the largest slope since θ began to move.",
        interval=Interval(1.0),
    )
    kappa_warmup: int = key(
        100, "How many steps with a slope other than 0 the estimate of κ takes before it counts.", interval=POSITIVE_COUNT
    )


@dataclass(frozen=True)
class Optimiser:
    """Momentum SGD as in PyTorch: v ← m v + g, w ← w − η v. The schedule's factor multiplies η and η_θ alike (O6)."""

    learning_rate: float = key(0.01, "η, the learning rate of the weights.", interval=NONNEGATIVE)
    momentum: float = key(
        0.9,
        "m, the share of the velocity that a step keeps. With 1 no step would be forgotten.",
        interval=Interval(0.0, 1.0),
    )
    schedule: str = key(
        "constant",
        'The factor on both learning rates. "constant": 1. "cosine": falls from 1 to 0. "one_cycle": rises linearly over the '
        'first 30 % of the epochs, then falls as a cosine. "warmup_stable_decay": rises over the first 10 %, stays at 1, falls '
        'linearly over the last 20 %. "robbins_monro": (1 + t/t₀)^−p at step t, whose sum is infinite and whose squares have a '
        "finite sum (O6).",
        choices=SCHEDULES,
    )
    schedule_power: float = key(0.7, "p of the schedule robbins_monro.", interval=Interval(0.51, 1.0, closed=True))
    schedule_offset: float = key(100.0, "t₀ of the schedule robbins_monro, in steps.", interval=Interval(1.0))


@dataclass(frozen=True)
class Training:
    """How long training runs, in which batches, and on what it computes. The bits do not depend on the number of threads."""

    epochs: int = key(
        10,
        "Epochs of ⌊N/batch_size⌋ steps each. The images of a shuffle that fill no batch are left out of that epoch.",
        interval=POSITIVE_COUNT,
    )
    batch_size: int = key(64, "Images in a mini-batch.", interval=POSITIVE_COUNT)
    section_scale: float = key(
        0.3, "Factor on He's initial weights inside the paths of sections. 1 leaves them as they are.", interval=NONNEGATIVE
    )
    backend: str = key("numba", 'Who computes: "numba" (compiled) or "oracle" (NumPy, for comparison).', choices=NAMES)
    dtype: str = key("float32", "The precision of weights and images.", choices=("float32", "float64"))
    threads: int = key(0, "Threads of the backend numba; 0 takes all cores.", interval=COUNT)
    log_every: int = key(20, "Steps between two lines in metrics.jsonl.", interval=POSITIVE_COUNT)
    checkpoint_every: int = key(
        0, "Steps between two checkpoints. One is also written after every epoch; 0 writes no others.", interval=COUNT
    )


@dataclass(frozen=True)
class Config:
    """One experiment: the keys at the top of the file, and its tables. `network` has the name of a network and its options."""

    name: str = key("experiment", "The experiment's name, from which the run's folder takes its own.")
    seed: int = key(0, "The seed of all random streams (O8).", interval=COUNT)
    unpruned: bool = key(True, "Whether the same network is also trained without gates, for the same epochs, to compare with.")
    from_scratch: bool = key(
        False, "Whether the network that pruning has left is also trained from new weights without gates, for the same epochs."
    )
    network: dict[str, Any] = field(default_factory=lambda: {"name": "residual-mlp"})
    data: Data = field(default_factory=Data)
    objective: Objective = field(default_factory=Objective)
    gates: Gates = field(default_factory=Gates)
    optimiser: Optimiser = field(default_factory=Optimiser)
    training: Training = field(default_factory=Training)

    def build_network(self) -> Network:
        """The network that `network` names, with its options. InputError for an unknown name or option."""
        return zoo.build(self.network["name"], {name: value for name, value in self.network.items() if name != "name"})


#: The tables of the file, in the order in which it has them.
TABLES: dict[str, type[Any]] = {
    "data": Data,
    "objective": Objective,
    "gates": Gates,
    "optimiser": Optimiser,
    "training": Training,
}
