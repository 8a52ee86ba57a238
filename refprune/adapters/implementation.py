"""What `refprune verify` talks to: an `Implementation`, of which somebody else writes the methods that he has something for.

Numbers such as F3 are those of `validation/SPEC.md`, where the formulas stand. Nothing is imported here, so that an adapter
costs nothing but its own framework.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Never

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Arrays = dict[str, Array]

Conventions = Mapping[str, Sequence[Any]]

#: Every value of every convention on which implementations differ (SPEC G, O5).
EVERY: Conventions = {
    "at_zero": (0.0, 0.5, 1.0),
    "ties": ("first", "last"),
    "count_padding": (True, False),
    "momentum_of": ("batch", "running"),
    "running_variance": ("unbiased", "biased"),
    "estimator": ("taylor", "paired"),
}

#: PyTorch's, each the first of its kind.
PYTORCH: Conventions = {name: values[:1] for name, values in EVERY.items()}


class Rates(NamedTuple):
    """The numbers of `Implementation.training_steps` that stay the same in all steps (O6): `Rates(**rates)`.

    learning_rate: η of the weights.
    momentum: m of the weights; θ has none.
    weight_decay: λ.
    theta_learning_rate: η_θ.
    beta: β, the pull on every θ.
    """

    learning_rate: float
    momentum: float
    weight_decay: float
    theta_learning_rate: float
    beta: float


class Implementation:
    """Somebody's implementation of gated training, or of any part of it. Override what there is; the rest is not judged.

    Arrays come as NumPy arrays of the declared precision (labels as int64), `spec` as the JSON-able network of
    `refprune.spec.json_form.to_json`, the rest as Python numbers and strings. Everything is passed by keyword. Results are
    arrays (or what `numpy.asarray` takes; PyTorch tensors too) of the declared precision; where a method has several, a tuple
    in the order documented or a dict by name, in which what does not exist may be missing or None. Arguments must not be
    changed. A method that cannot do what one call asks raises NotImplementedError: the call is counted as declined, not as
    passed.

    precision: "float64", "float32", or "bfloat16", which travels as float32 arrays of bfloat16 numbers.
    conventions: the values that this implementation may be asked for; PYTORCH, EVERY or a mapping of its own, in which a
    convention that is not named is PyTorch's.
    estimator: which estimator of O5 `theta_estimate` and `theta_sample` are: "exact", "paired", "reinforce", "arm", "disarm" or
    "taylor".
    samples: how many gate vectors (arm, disarm: pairs) one estimate of `theta_sample` is made of; more than one of reinforce
    means its leave-one-out baseline.
    deterministic: whether two equal calls must give equal bits.
    structures: None, or how many structures (shapes, options, networks) the examples of a method may have, times its share
        (networks have 5): what compiles each structure anew is then asked the same ones with other numbers, and of those that
        are the same in every run as many at most, beside the ends of every domain.

    >>> import numpy as np
    >>> import refprune
    >>> class Mine(refprune.Implementation):
    ...     precision = "float64"
    ...     def pi_star(self, theta, log_gamma):
    ...         gamma = np.exp(log_gamma)
    ...         return gamma * theta / (1 + (gamma - 1) * theta)
    >>> Mine().pi_star(theta=np.array([0.5]), log_gamma=np.log([3.0])).round(6).tolist()
    [0.75]
    """

    precision: str = "float64"
    conventions: Conventions = PYTORCH
    estimator: str = "reinforce"
    samples: int = 1
    deterministic: bool = True
    structures: int | None = None

    # ------------------------------------------------------------------------------------------------ scalar formulas (F, P)

    def pi_star(self, theta: Array, log_gamma: Array) -> Any:
        """π*(θ) = γθ/(1 + (γ−1)θ) of every gate (F2). theta (n,) in [0, 1], log_gamma (n,) any numbers → (n,)."""
        _missing()

    def penalty(self, theta: Array, log_gamma: Array) -> Any:
        """min over π of KL(θ‖π) − log p(π|γ) = −θ log γ + c(γ), c(γ) = log γ − log((γ−1)/log γ) (F3), per gate and data set.

        (n,), (n,) → (n,).
        """
        _missing()

    def penalty_slope(self, theta: Array, log_gamma: Array) -> Any:
        """∂penalty/∂θ (F3), per gate and data set. (n,), (n,) → (n,)."""
        _missing()

    def kl(self, theta: Array, pi: Array) -> Any:
        """KL(Bern(θ)‖Bern(π)) (P5), in nats, per gate; +∞ where θ is impossible under π. (n,), (n,) → (n,)."""
        _missing()

    def hyper_prior(self, pi: Array, log_gamma: Array) -> Any:
        """log p(π|γ), p = (γ−1)/log γ / (1 + (γ−1)(1−π)), and its derivative in π (F1).

        (n,), (n,) → log_density (n,), slope (n,).
        """
        _missing()

    def beta(self, log_gamma: float, samples: int) -> Any:
        """β = −log γ / N, the pull on θ per sample (F3, O1) → number."""
        _missing()

    def prior(self, w: Array, kind: str, parameters: Mapping[str, float]) -> Any:
        """(log p(w), ∂ log p/∂w) of a Gaussian scale mixture (P1): log_density, score.

        kind "spike_slab" (pi, precision, spike) and "student_t" (degrees, width) are of blocks: w (m, d) → (m,), (m, d);
        "laplace" (width) and "horseshoe" (width) are per weight: w (m,) → (m,), (m,).
        """
        _missing()

    def responsibility(self, w: Array, pi: float, precision: float, spike: float) -> Any:
        """Probability that a block comes from the slab (P2). w (m, d) → (m,)."""
        _missing()

    def theta_step(self, theta: Array, gradient: Array, beta: float, learning_rate: float) -> Any:
        """clip(θ − η_θ(ĝ + β), 0, 1) (O6). (G,), (G,) → (G,)."""
        _missing()

    # ----------------------------------------------------------------------------------------------------------- layers (G)
    # Each computes a layer and the gradients with respect to its arrays for the cotangent dy, which is never all ones.
    # Dense data N×n, images N×C×H×W; weights out×in and out×(in/groups)×kh×kw; padding ((top, bottom), (left, right)).

    def dense(self, x: Array, w: Array, b: Array | None, dy: Array) -> Any:
        """y = x wᵀ + b → y, dx, dw, db (None without b)."""
        _missing()

    def conv2d(
        self,
        x: Array,
        w: Array,
        b: Array | None,
        dy: Array,
        stride: tuple[int, int],
        padding: tuple[tuple[int, int], tuple[int, int]],
        dilation: tuple[int, int],
        groups: int,
    ) -> Any:
        """Cross-correlation → y, dx, dw, db (None without b)."""
        _missing()

    def batch_norm(self, x: Array, gain: Array, bias: Array, dy: Array, eps: float) -> Any:
        """Train mode, biased variance of the batch → y, dx, dgain, dbias."""
        _missing()

    def batch_norm_eval(self, x: Array, gain: Array, bias: Array, mean: Array, variance: Array, dy: Array, eps: float) -> Any:
        """Eval mode, with the given mean and variance, which are constants → y, dx, dgain, dbias."""
        _missing()

    def leaky_relu(self, x: Array, dy: Array, slope: float, at_zero: float) -> Any:
        """max(x, 0) + slope·min(x, 0), ReLU with slope 0; derivative at 0: slope + at_zero·(1 − slope) → y, dx."""
        _missing()

    def tanh(self, x: Array, dy: Array) -> Any:
        """→ y, dx."""
        _missing()

    def sigmoid(self, x: Array, dy: Array) -> Any:
        """→ y, dx."""
        _missing()

    def gelu(self, x: Array, dy: Array) -> Any:
        """x Φ(x), by the error function → y, dx."""
        _missing()

    def gelu_tanh(self, x: Array, dy: Array) -> Any:
        """x/2·(1 + tanh(√(2/π)(x + 0.044715 x³))) → y, dx."""
        _missing()

    def max_pool(
        self,
        x: Array,
        dy: Array,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[tuple[int, int], tuple[int, int]],
        ties: str,
    ) -> Any:
        """Padding never wins; ties: the "first" maximum in row-major order gets the gradient, or the "last" → y, dx."""
        _missing()

    def average_pool(
        self,
        x: Array,
        dy: Array,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[tuple[int, int], tuple[int, int]],
        count_padding: bool,
    ) -> Any:
        """count_padding: whether the divisor counts padded pixels → y, dx."""
        _missing()

    def global_average_pool(self, x: Array, dy: Array) -> Any:
        """N×C×H×W → y N×C, dx."""
        _missing()

    def flatten(self, x: Array, dy: Array) -> Any:
        """N×C×H×W → y N×(C·H·W), channels outermost, dx."""
        _missing()

    def subsample_pad(self, x: Array, dy: Array, stride: tuple[int, int], before: int, after: int) -> Any:
        """Option-A shortcut: every stride-th pixel, zero channels before and after (N1) → y, dx."""
        _missing()

    def add(self, shortcut: Array, path: Array, dy: Array, channels: tuple[int, ...] | None) -> Any:
        """shortcut + path; with channels, the path adds to those only, in this order → y, dshortcut, dpath."""
        _missing()

    def gate(self, x: Array, g: Array, dy: Array) -> Any:
        """g ⊙ x, g of shape () (a layer gate) or (C,) (one a unit or filter, axis 1), any numbers → y, dx, dg."""
        _missing()

    def cross_entropy(self, logits: Array, labels: Array, dy: Array, reduction: str) -> Any:
        """−log softmax(logits)[label], "mean" or "sum" over the batch; dy of shape () → loss, dlogits."""
        _missing()

    def mean_squared_error(self, prediction: Array, target: Array, dy: Array, reduction: str) -> Any:
        """reduction "mean" (of all), "batch_mean" (Σ over outputs, mean over N), "sum"; dy of shape () → loss, dprediction."""
        _missing()

    def weight_decay(self, w: Array, dy: Array, strength: float) -> Any:
        """½ λ ‖w‖²; dy of shape () → value, dw."""
        _missing()

    # ----------------------------------------------------------------------------------------- whole networks (N, O2, O3, O5)

    def network(
        self,
        spec: Mapping[str, Any],
        params: Arrays,
        statistics: Arrays,
        x: Array,
        target: Array,
        gates: Array,
        train: bool,
    ) -> Any:
        """c(W, Ξ) on one batch with its gradients, at the given gates (N1–N4, O3).

        params, statistics: name → array, as in `spec`'s layers ("section1.conv2.weight"); gates (G,) in data-flow order, a
        section's own before its units', 0 or 1. → a dict with any of
        "output" N×K, "loss" (), "params" name → gradient, "gates" (G,) ∂c/∂ξ (also of closed gates), "input" like x,
        "statistics" name → running statistics after the batch (train mode; a closed section's stay), and, to see where a
        difference begins, "layers" layer name → its output, and "branches" layer name → the sign of a ReLU's input (int8) or
        the row-major index of a max pool's choice inside its window.
        """
        _missing()

    def theta_gradient(
        self,
        spec: Mapping[str, Any],
        params: Arrays,
        statistics: Arrays,
        x: Array,
        target: Array,
        theta: Array,
        train: bool,
    ) -> Any:
        """C(W, θ) and its exact gradients (O1–O3), for few gates → dict of "value" (), "theta" (G,), "params" name → ∂C/∂W."""
        _missing()

    def theta_estimate(
        self,
        spec: Mapping[str, Any],
        params: Arrays,
        statistics: Arrays,
        x: Array,
        target: Array,
        theta: Array,
        uniform: Array,
        train: bool,
    ) -> Any:
        """The estimate of ∂C/∂θ (O5) made of the given uniform numbers v, Ξ = 1[v < θ]. uniform (K, G) → (G,).

        "reinforce" uses all K rows, for K > 1 with the leave-one-out baseline; the others use the first row alone. "arm" and
        "disarm" take Ξ and Ξ' = 1[v > 1 − θ] of it, "paired" flips one gate of Ξ at a time, "taylor" is ∂c/∂ξ at Ξ.
        """
        _missing()

    def theta_sample(
        self,
        spec: Mapping[str, Any],
        params: Arrays,
        statistics: Arrays,
        x: Array,
        target: Array,
        theta: Array,
        train: bool,
        draws: int,
        seed: int,
    ) -> Any:
        """Independent estimates of ∂C/∂θ (O5), made of random numbers of one's own → (draws, G).

        Every call gets another seed, for one's own generator. Judged on the mean, by a sequential test.
        """
        _missing()

    def training_steps(
        self,
        *,
        spec: Mapping[str, Any],
        params: Arrays,
        statistics: Arrays,
        theta: Array,
        x: Array,
        target: Array,
        gates: Array,
        learning_rate: float,
        momentum: float,
        weight_decay: float,
        theta_learning_rate: float,
        beta: float,
        estimator: str,
    ) -> Any:
        """k steps of projected SGD in train mode for given gates and batches (O6), starting with zero momentum.

        x (k, N, …), target (k, N), gates (k, G). In each step, all derivatives being of the same batch and gates:
        v ← m v + (∂c/∂W + λ W), W ← W − η v for every parameter; θ ← clip(θ − η_θ(ĝ + β), 0, 1), ĝ by `estimator`: "taylor"
        (∂c/∂ξ) or "paired" (O5). The five numbers may be taken one by one, as here, or as `**rates` for a `Rates`.
        → dict of "params" name → W, "velocity" name → v, "statistics", "theta" (G,), "loss" (k,).
        """
        _missing()

    # --------------------------------------------------------------------------------------------------- pruning (N3, N4, D6)

    def pruning_decision(self, theta: Array, threshold: float) -> Any:
        """Which gates stay under the rule `threshold`, which prunes θ ≤ τ (D6). (G,) → (G,) booleans."""
        _missing()

    def attracted(self, w: Array, theta: Array, kappa: Array, beta: float, decay: float, ratio: float) -> Any:
        """Is (‖W‖, θ) in the domain of attraction H of (0, 0) (D4)? All (G,) → (G,) booleans."""
        _missing()

    def compact(
        self,
        spec: Mapping[str, Any],
        params: Arrays,
        statistics: Arrays,
        keep: Array,
        x: Array,
        train: bool,
    ) -> Any:
        """The network without the gates that are False in keep (G,), all others fixed to 1 (N3, N4): it computes the same.

        → dict of "output" N×K, "parameters" (how many numbers are left), "params" name → what is left of each array.
        """
        _missing()

    # -------------------------------------------------------------------------------------------------------- complexity (C)

    def complexity(self, spec: Mapping[str, Any], theta: Array, nu: float, alpha: float, balance: float) -> Any:
        """What a network costs (N6, C1–C5), against itself with all gates on.

        → dict of "parameters", "macs" (of one input, all gates on), "expected_parameters", "expected_macs" (at θ),
        "penalty" ν R_ρ(θ), "beta" (G,) its gradient.
        """
        _missing()

    # -------------------------------------------------------------------------------------------------------- similarity (K)

    def hsic(self, x: Array, y: Array, estimator: str) -> Any:
        """HSIC of the linear kernels x xᵀ and y yᵀ (K1): "biased", tr(KHLH)/(n−1)², or "unbiased". n×p, n×q → number."""
        _missing()

    def cka(self, x: Array, y: Array, estimator: str, kernel: str) -> Any:
        """CKA of two feature arrays (K2); kernel "linear", or "rbf" with σ the median distance of each. n×p, n×q → number."""
        _missing()

    def minibatch_cka(self, x: Array, y: Array) -> Any:
        """Ratio of the means over batches of unbiased HSIC, linear (K4). (batches, n, p), (batches, n, q) → number."""
        _missing()


def _missing() -> Never:
    raise NotImplementedError("not provided")
