"""Known mistakes made in the PyTorch implementation, `refprune verify` on each: `python -m validation.torch_mistakes [NAME …]`.

A row a mistake: was it found, where did it begin, was it named. None of them is planted in refprune: each is the PyTorch code
with one thing changed, and must be found there. Exit code 0 if all are found and at least 90 % named.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from refprune.conformance import campaign
from refprune.conformance.calls import InProcess
from refprune.conformance.known import KNOWN
from refprune.conformance.levels import METHODS
from refprune.conformance.torch_adapter import TorchImplementation

EXAMPLES = 60
LEAST_NAMED = 0.9


class Planted(NamedTuple):
    """name: the mistake's in the catalogue; method: where it is made; wrong(right method, arguments) → the wrong answer."""

    name: str
    method: str
    wrong: Callable[[Callable[..., Any], dict[str, Any]], Any]


def result(**changes: Callable[[Any, dict[str, Any]], Any]) -> Callable[..., Any]:
    """The right results, some put through change(value, arguments)."""

    def wrong(right: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        method = METHODS[right.__name__]
        found = right(**arguments)
        parts = found if isinstance(found, tuple) else (found,)
        named = found if isinstance(found, dict) else dict(zip(method.results, parts, strict=True))
        return {n: changes[n](v, arguments) if n in changes and v is not None else v for n, v in named.items()}

    return wrong


def asked(**changes: Callable[[Any], Any]) -> Callable[..., Any]:
    """The right method, asked something else."""
    return lambda right, a: right(**{n: changes[n](v) if n in changes else v for n, v in a.items()})


def swapped(padding: Any) -> Any:
    return tuple((after, before) for before, after in padding)


def one_sided(padding: Any) -> Any:
    return tuple((sum(sides), 0) for sides in padding)


def tensor(a: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(a))


def channels(v: Any, ndim: int) -> Any:
    return tensor(v).reshape(1, -1, *[1] * (ndim - 2))


def inverse_deviation(a: dict[str, Any]) -> Any:
    x = tensor(a["x"])
    axes = (0, *range(2, x.ndim))
    return 1.0 / (x.var(axes, unbiased=False, keepdim=True) + a["eps"]).sqrt()


def of_unbiased_variance(y: Any, a: dict[str, Any]) -> Any:
    b, count = channels(a["bias"], y.ndim), a["x"].size // a["x"].shape[1]
    return (y - b) * ((count - 1) / count) ** 0.5 + b


def uncentred(right: Callable[..., Any], a: dict[str, Any]) -> Any:
    k, l = (tensor(a[n]) @ tensor(a[n]).T for n in ("x", "y"))  # noqa: E741
    return (k * l).sum() / ((k * k).sum() * (l * l).sum()).sqrt()


def unprojected(right: Callable[..., Any], a: dict[str, Any]) -> Any:
    return tensor(a["theta"] - a["learning_rate"] * (a["gradient"] + a["beta"]))


def mirrored(right: Callable[..., Any], a: dict[str, Any]) -> Any:
    """Gates on where v < 1 − θ; the score as it is."""

    class Mine(TorchImplementation):
        def estimates(self, module: Any, x: Any, target: Any, theta: Any, uniform: Any) -> Any:
            swapped = torch.where(uniform < 1.0 - theta, 0.0, 1.0)  # 0 < θ, not 1 < θ: a uniform number that opens the gate
            return super().estimates(module, x, target, theta, swapped)

    return Mine().theta_estimate(**a)


def own_baseline(right: Callable[..., Any], a: dict[str, Any]) -> Any:
    """The mean of all K losses instead of the others': (K − 1)/K of the right estimate."""
    k = len(a["uniform"])
    return right(**a) * ((k - 1) / k if k > 1 else 1.0)


def bias(a: dict[str, Any]) -> Any:
    return 0.0 if a["b"] is None else tensor(a["b"])


def without_shortcut(y: Any, a: dict[str, Any]) -> Any:
    return y - tensor(a["shortcut"]) if a["channels"] is None else y


def sgd(**options: Any) -> Callable[..., Any]:
    """torch.optim.SGD with other options."""

    def wrong(right: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        original = torch.optim.SGD

        def other(parameters: Any, rate: float, momentum: float, weight_decay: float) -> Any:
            given = {"momentum": momentum, "weight_decay": weight_decay} | options
            if "dampening" in options:
                given["dampening"] = momentum
            if momentum == 0.0:
                given.pop("nesterov", None)
            return original(parameters, rate, **given)

        torch.optim.SGD = other  # type: ignore[assignment,misc]
        try:
            return right(**arguments)
        finally:
            torch.optim.SGD = original  # type: ignore[misc]

    return wrong


PLANTED: tuple[Planted, ...] = (
    Planted("sign of log γ in π*", "pi_star", asked(log_gamma=np.negative)),
    Planted("sign of log γ in the penalty", "penalty", asked(log_gamma=np.negative)),
    Planted("log γ to the base 10", "penalty", asked(log_gamma=lambda g: g / np.log(10.0))),
    Planted("penalty without its constant", "penalty", lambda f, a: -tensor(a["theta"]) * tensor(a["log_gamma"])),
    Planted("c(γ) without the normaliser", "penalty", lambda f, a: (1.0 - tensor(a["theta"])) * tensor(a["log_gamma"])),
    Planted("slope of the penalty with the wrong sign", "penalty_slope", result(penalty_slope=lambda v, a: -v)),
    Planted("1/N dropped in β", "beta", result(beta=lambda v, a: v * a["samples"])),
    Planted("sign of β", "beta", result(beta=lambda v, a: -v)),
    Planted("KL the other way round", "kl", lambda f, a: f(theta=a["pi"], pi=a["theta"])),
    Planted("log-density of 1−π", "hyper_prior", lambda f, a: {"log_density": f(a["pi"] * -1.0 + 1.0, a["log_gamma"])[0]}),
    Planted("slope of log p with the wrong sign", "hyper_prior", result(slope=lambda v, a: -v)),
    Planted("responsibility of the spike", "responsibility", result(responsibility=lambda v, a: 1.0 - v)),
    Planted(
        "projection forgotten", "theta_step", lambda f, a: tensor(a["theta"] - a["learning_rate"] * (a["gradient"] + a["beta"]))
    ),
    Planted("dense weights' gradient divided by N", "dense", result(dw=lambda g, a: g / len(a["x"]))),
    Planted(
        "bias left out",
        "dense",
        result(y=lambda y, a: y - bias(a), db=lambda g, a: 0.0 * g),
    ),
    Planted("convolution with paddings swapped", "conv2d", asked(padding=swapped)),
    Planted("padding on one side only", "conv2d", asked(padding=one_sided)),
    Planted("kernel flipped in the backward pass", "conv2d", result(dw=lambda g, a: g.flip((2, 3)))),
    Planted("batch-norm divides by n − 1", "batch_norm", result(y=of_unbiased_variance)),
    Planted(
        "batch-norm's mean taken for a constant",
        "batch_norm",
        result(dx=lambda g, a: tensor(a["dy"]) * channels(a["gain"], g.ndim) * inverse_deviation(a)),
    ),
    Planted("eval batch-norm without eps", "batch_norm_eval", asked(eps=lambda e: 1e-30)),
    Planted("eval batch-norm's gain left out of dx", "batch_norm_eval", result(dx=lambda g, a: tensor(a["dy"]))),
    Planted("slope of the leaky ReLU forgotten", "leaky_relu", asked(slope=lambda s: 0.0)),
    Planted("GELU by its tanh formula, forward and backward", "gelu", lambda f, a: TorchImplementation().gelu_tanh(**a)),
    Planted(
        "sum for mean in the global average pool",
        "global_average_pool",
        result(y=lambda y, a: y * a["x"][0, 0].size, dx=lambda g, a: g * a["x"][0, 0].size),
    ),
    Planted("section without its shortcut", "add", result(y=without_shortcut)),
    Planted("gate not applied", "gate", result(y=lambda y, a: tensor(a["x"]))),
    Planted("gate missing in the backward pass", "gate", result(dx=lambda g, a: tensor(a["dy"]))),
    Planted("gate's gradient as a mean", "gate", result(dg=lambda g, a: g / len(a["dy"]))),
    Planted("sign of the gate's gradient", "gate", result(dg=lambda g, a: -g)),
    Planted("no gradient for the gate", "gate", result(dg=lambda g, a: 0.0 * g)),
    Planted("sum for mean in the cross-entropy", "cross_entropy", asked(reduction=lambda r: "sum")),
    Planted("cross-entropy's mean not in its gradient", "cross_entropy", result(dlogits=lambda g, a: g * len(g))),
    Planted("squared error: sum", "mean_squared_error", asked(reduction=lambda r: "sum")),
    Planted("squared error without the 2", "mean_squared_error", result(dprediction=lambda g, a: g / 2.0)),
    Planted("weight decay without ½", "weight_decay", result(value=lambda v, a: 2.0 * v)),
    Planted("weight decay's gradient without λ", "weight_decay", result(dw=lambda g, a: tensor(a["w"]) * tensor(a["dy"]))),
    Planted("Nesterov momentum", "training_steps", sgd(nesterov=True)),
    Planted("no weight decay", "training_steps", sgd(weight_decay=0.0)),
    Planted("momentum with PyTorch's dampening", "training_steps", sgd(dampening=0.0)),
    Planted("MACs counted twice", "complexity", lambda f, a: {"macs": 2 * f(**a)["macs"]}),
    Planted(
        "MACs counted twice, expected ones too",
        "complexity",
        result(macs=lambda n, a: 2 * n, expected_macs=lambda n, a: 2 * n),
    ),
    Planted("α and 1 − α swapped", "complexity", asked(alpha=lambda alpha: 1.0 - alpha)),
    Planted("ρ and 1 − ρ swapped", "complexity", asked(balance=lambda balance: 1.0 - balance)),
    Planted("gates sampled with probability 1 − θ", "theta_estimate", mirrored),
    Planted("baseline of which the sample itself is part", "theta_estimate", own_baseline),
    Planted("biased HSIC over n²", "hsic", lambda f, a: f(**a) * ((len(a["x"]) - 1) / len(a["x"])) ** 2),
    Planted("CKA without the root", "cka", result(cka=lambda v, a: v**2)),
    Planted("features not centred", "cka", uncentred),
    Planted("biased CKA called unbiased", "cka", asked(estimator=lambda e: "biased")),
)


def planted(mistake: Planted) -> TorchImplementation:
    """The PyTorch implementation with the mistake."""
    right = getattr(TorchImplementation(), mistake.method)
    wrong = {mistake.method: lambda self, **arguments: mistake.wrong(right, arguments)}
    mine: TorchImplementation = type("Mine", (TorchImplementation,), wrong)()
    return mine


def try_out(mistake: Planted, examples: int = EXAMPLES) -> tuple[bool, str, Sequence[str]]:
    """(found, first tensor that differs, names)."""
    outcomes = campaign.run(InProcess(planted(mistake)), [METHODS[mistake.method]], examples, 0)
    wrong = [f for f in outcomes[0].findings if f.kind in ("deviates", "not finite")]
    if not wrong:
        return False, "", ()
    return True, wrong[0].first.name if wrong[0].first else wrong[0].kind, [m.name for m in wrong[0].mistakes]


def main(arguments: Sequence[str]) -> int:
    unknown = {p.name for p in PLANTED} - {m.name for m in KNOWN}
    assert not unknown, unknown
    campaign.SHRINKING = 3.0
    chosen = [p for p in PLANTED if not arguments or any(a in p.name or a == p.method for a in arguments)]
    found, named = 0, 0
    for mistake in chosen:
        started = time.monotonic()
        seen, first, names = try_out(mistake)
        found, named = found + seen, named + (mistake.name in names)
        words = "NOT FOUND" if not seen else "named" if mistake.name in names else f"called {', '.join(names) or 'nothing'}"
        others = len(names) - 1 if mistake.name in names else 0
        words += f" (and {others} more with the same numbers)" if others > 0 else ""
        print(f"{mistake.method:20} {mistake.name:50} {first:20} {time.monotonic() - started:5.1f} s  {words}", flush=True)
    print(f"\n{found} of {len(chosen)} found, {named} named")
    return 0 if found == len(chosen) and named >= LEAST_NAMED * len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
