"""Priors and the flattening hyper-prior: against 50 digits over the whole range, ends, bad input, kernels against the oracle.

What the formulas claim (normalised, a mixture, a minimum, linear) is proved by `refprune audit --only F,P`, which
`tests/audit/test_audit.py` runs; here is what an implementation can get wrong besides.
"""

import mpmath
import numpy as np
import pytest

from refprune.backend import ORACLE, load_backend
from refprune.errors import InputError
from refprune.formulas import hyper_prior, priors, scalar

DIGITS, ULPS = 50, 4
PRIORS = [
    *(priors.SpikeSlab(pi, 2.0, 1e-3) for pi in (0.0, 0.3, 1.0)),
    priors.StudentT(3.0, 0.7),
    priors.Laplace(0.4),
    priors.Horseshoe(0.6),
]
FAST = {threads: load_backend("numba", threads=threads) for threads in (1, 2)}


def _grid(count=900, seed=0):
    """(p, L): all magnitudes of both, both ends, where e^{−|L|} is subnormal, ties of |L| with 0 and 1."""
    rng = np.random.default_rng(seed)
    size = [10.0 ** rng.uniform(-300, 300, count), 10.0 ** rng.uniform(-9, 4, count), rng.uniform(590, 760, count)]
    size = np.concatenate([*size, rng.uniform(0, 2, count), [0.0, 5e-324, 1e308, 600.0]])
    log_gamma = size * rng.choice([-1.0, 1.0], size.size)
    p = [rng.uniform(0, 1, size.size), 10.0 ** rng.uniform(-323, 0, size.size), 1 - 10.0 ** rng.uniform(-16, 0, size.size)]
    p += [np.zeros(size.size), np.ones(size.size)]
    return np.choose(rng.integers(0, len(p), size.size), p), log_gamma


class Exact:
    """The formulas of SPEC F with 50 digits (more where L is so small that 1 − e^L needs them)."""

    def __init__(self, p, log_gamma):
        mpmath.mp.dps = DIGITS + int(max(0.0, -2.0 * np.log10(abs(log_gamma) + 1e-323)))
        self.p, self.l = mpmath.mpf(float(p)), mpmath.mpf(float(log_gamma))
        # e^{10⁷} is far beyond 50 digits of anything it is added to
        self.gamma = mpmath.exp(self.l) if abs(self.l) < 10**7 else (mpmath.inf if self.l > 0 else mpmath.mpf(0))

    def summands(self):
        """(log of the normaliser, log of the denominator) with the larger of 1 and γ taken out of both."""
        if self.l == 0:
            return mpmath.mpf(0), mpmath.mpf(0)
        if mpmath.isinf(self.gamma) or self.gamma == 0:
            rest = 1 - self.p if self.l > 0 else self.p
            inside = mpmath.log(rest) if rest else -abs(self.l)
            return -mpmath.log(abs(self.l)), inside
        out = max(self.l, 0)
        norm = mpmath.log((self.gamma - 1) / self.l) - out
        return norm, mpmath.log(self.p + self.gamma * (1 - self.p)) - out

    def log_density(self):
        norm, denominator = self.summands()
        return norm - denominator, max(abs(norm), abs(denominator))

    def density(self):
        return mpmath.exp(self.log_density()[0])

    def pi_star(self):
        if self.p in (0, 1) or self.gamma == 0 or mpmath.isinf(self.gamma):
            return self.p if self.p in (0, 1) else mpmath.mpf(int(self.l > 0))
        return self.gamma * self.p / (1 + (self.gamma - 1) * self.p)


def _ulps(got, want, of=None):
    """|got − want| in units in the last place of `of` (default: want); 0 where both overflow."""
    if abs(want) > mpmath.mpf(float(np.finfo(float).max)):
        return 0.0 if np.isinf(got) and (got > 0) == (want > 0) else np.inf
    spacing = np.spacing(abs(float(want if of is None else of)))
    return float(abs(mpmath.mpf(float(got)) - want) / mpmath.mpf(float(spacing)))


def test_the_accuracy_that_f6_states():
    p, log_gamma = _grid()
    density, log_density = hyper_prior.density(p, log_gamma), hyper_prior.log_density(p, log_gamma)
    star, slope = hyper_prior.pi_star(p, log_gamma), hyper_prior.log_density_slope(p, log_gamma)
    for i in range(p.size):
        exact = Exact(p[i], log_gamma[i])
        wanted, largest = exact.log_density()
        errors = {
            "density": _ulps(density[i], exact.density()),
            "slope": _ulps(slope[i], exact.density() * exact.l),
            "log density": _ulps(log_density[i], wanted, largest),
            "π*": _ulps(star[i], exact.pi_star()),
        }
        assert max(errors.values()) <= ULPS, (p[i], log_gamma[i], errors)


def test_ends_are_exact():
    for log_gamma in (-1e4, -2.0, 0.0, 3.0, 1e300):
        assert list(hyper_prior.pi_star([0.0, 1.0], log_gamma)) == [0.0, 1.0]
        assert list(hyper_prior.kl_at_pi_star([0.0, 1.0], log_gamma)) == [0.0, 0.0]
        assert hyper_prior.penalty(1.0, log_gamma) == hyper_prior.penalty_constant(log_gamma) - log_gamma
    assert [a.tolist() for a in hyper_prior.log_pi_star([0.0, 1.0], 5.0)] == [[-np.inf, 0.0], [0.0, -np.inf]]
    assert list(scalar.bernoulli_kl([0.0, 0.0, 1.0, 1.0, 0.5], [0.0, 1.0, 1.0, 0.0, 1.0])) == [0.0, np.inf, 0.0, np.inf, np.inf]
    assert list(scalar.logit(np.array([0.0, 0.5, 1.0]))) == [-np.inf, 0.0, np.inf]


@pytest.mark.parametrize("log_gamma", [-5000.0, 5000.0])
def test_the_kl_stays_finite_where_pi_star_is_rounded_to_an_end(log_gamma):
    assert np.isfinite(hyper_prior.kl_at_pi_star(0.5, log_gamma))
    assert np.isinf(scalar.bernoulli_kl(0.5, hyper_prior.pi_star(0.5, log_gamma)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hyper_prior.log_density(0.5, np.inf), "log_gamma: got inf"),
        (lambda: hyper_prior.penalty(0.5, np.nan), "log_gamma: got nan"),
        (lambda: hyper_prior.pi_star([0.5, 1.5], -1.0), r"theta\[1\]: got 1.5"),
        (lambda: hyper_prior.density(-0.1, -1.0), "pi: got -0.1"),
        (lambda: scalar.bernoulli_kl(np.nan, 0.5), "theta: got nan"),
        (lambda: scalar.bernoulli_kl("x", 0.5), "theta: 'x' is no array of numbers"),
        (lambda: hyper_prior.pi_star([0.5, 0.5], [1.0, 1.0, 1.0]), r"log_gamma: shape \(3,\) does not meet theta's \(2,\)"),
        (lambda: hyper_prior.beta_from_log_gamma(-1.0, 0), "samples: must be an integer of at least 1, got 0"),
        (lambda: hyper_prior.decay_from_precision(1.0, 0), "samples: must be an integer of at least 1, got 0"),
        (lambda: priors.SpikeSlab(0.5, 1.0, 2.0), "spike: got 2.0"),
        (lambda: priors.SpikeSlab(0.5, 1.0, np.nan), "spike: got nan"),
        (lambda: priors.SpikeSlab(1.5, 1.0, 0.1), "pi: got 1.5"),
        (lambda: priors.SpikeSlab(0.5, 1.0, 0.0).density([1.0]), "spike: got 0"),
        (lambda: priors.StudentT(0.0, 1.0), "degrees: got 0.0"),
        (lambda: priors.StudentT(1e301, 1.0), "degrees: got 1e\\+301; numbers from 1e-300 to 1e300 are allowed"),
        (lambda: priors.Laplace([1.0, 2.0]), "width: got an array"),
        (lambda: priors.Laplace(1.0).density([0.0, np.inf]), r"w\[1\]: got inf"),
        (lambda: priors.StudentT(1.0, 1.0).density(1.0), r"w: shape \(\) has no blocks"),
        (lambda: priors.sample(priors.Laplace(1.0), [0.5], [0.1, 0.2]), "uniform: shape"),
        (lambda: priors.sample(priors.Laplace(1.0), [1.0], [0.1]), r"uniform\[0\]: got 1.0; numbers strictly"),
        (lambda: hyper_prior.beta_from_log_gamma(np.inf, 10), "log_gamma: got inf"),
        (lambda: hyper_prior.beta_from_log_gamma(np.nan, 10), "log_gamma: got nan"),
        (lambda: hyper_prior.beta_from_log_gamma(-1.0, np.nan), "samples: must be an integer of at least 1, got nan"),
        (lambda: hyper_prior.beta_from_log_gamma(-1.0, 2.5), "samples: must be an integer of at least 1, got 2.5"),
        (lambda: hyper_prior.beta_from_log_gamma([-1.0, 2.0], 10), r"log_gamma: got an array of shape \(2,\)"),
        (lambda: hyper_prior.log_gamma_from_beta(np.nan, 10), "beta: got nan"),
        (lambda: hyper_prior.log_gamma_from_beta(1e300, 10**10), r"beta: got 1e\+300, which overflows"),
        (lambda: hyper_prior.decay_from_precision(np.nan, 10), "precision: got nan"),
        (lambda: hyper_prior.decay_from_precision(-1.0, 10), "precision: got -1.0"),
        (lambda: hyper_prior.precision_from_decay(-1.0, 10), "decay: got -1.0"),
        (lambda: hyper_prior.flattening_profile(0.5, [1, 2, 3]), r"log_gamma: shape \(3,\) does not meet theta's \(\)"),
        (lambda: hyper_prior.flattening_density(0.5, [1, 2, 3]), r"log_gamma: shape \(3,\) does not meet pi's \(\)"),
        (lambda: FAST[1].flattening_profile(np.array(0.5), np.ones(3)), r"log_gamma: shape \(3,\) does not meet theta's \(\)"),
        (lambda: FAST[1].flattening_density(0.5, [1, 2, 3]), r"log_gamma: shape \(3,\) does not meet pi's \(\)"),
        (lambda: FAST[1].flattening_density(np.array([0.5]), [[1], [1, 2]]), "log_gamma: .* is no array of numbers"),
        (lambda: hyper_prior.log_density(0.5 + 1j, -1.0), "pi: .* is complex"),
        (lambda: priors.SpikeSlab(0.5, 1.0, [0.1, 0.2]), r"spike: got an array of shape \(2,\)"),
        (lambda: priors.SpikeSlab(0.5, 1.0, "x"), "spike: 'x' is no array of numbers"),
        (lambda: priors.SpikeSlab(0.5, 1.0, 1e-310), "spike: got 1e-310; 0 and numbers from 5.56e-309"),
        (lambda: priors.sample(priors.Laplace(1.0), [0.5], [np.nan]), r"normal\[0\]: got nan"),
        (lambda: priors.Laplace(1.0).density("x"), "w: 'x' is no array of numbers"),
        (lambda: priors.Laplace(1.0).density([1.0 + 1e-3j]), "w: .* is complex"),
        (lambda: FAST[1].prior_density(np.array([1.0 + 1e-3j]), PRIORS[-1]), "w: .* is complex"),
        (lambda: FAST[1].prior_density(np.array([[0.0], [np.nan]], np.float32), PRIORS[1]), r"w\[1, 0\]: got nan"),
        (lambda: FAST[1].flattening_profile(np.array([0.5, np.nan]), -1.0), r"theta\[1\]: got nan"),
        (lambda: FAST[1].flattening_density(np.array([0.5, 2.0]), -1.0), r"pi\[1\]: got 2.0"),
        (lambda: FAST[1].flattening_profile(np.array([0.5, 0.5]), np.inf), "log_gamma: got inf"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_responsibility_in_the_limit():
    """s₀ → 0: the slab is responsible for everything that is not exactly 0."""
    w = np.array([[0.0, 0.0], [0.0, 1e-3], [2.0, 1.0]])
    limit = priors.SpikeSlab(0.3, 2.0, 0.0).responsibility(w)
    assert list(limit) == [0.0, 1.0, 1.0]
    near = priors.SpikeSlab(0.3, 2.0, 1e-20).responsibility(w)
    assert list(np.round(near)) == list(limit)
    assert list(priors.SpikeSlab(1.0, 2.0, 0.0).responsibility(w)) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("backend", [ORACLE, FAST[1]], ids=["oracle", "numba"])
def test_constants_beyond_the_dtype(backend, dtype):
    """1/s₀ overflows in float32, νσ² is subnormal there, ‖w‖² overflows: log-density and score are what 50 digits say."""
    digits = np.finfo(dtype).eps * 64
    w = dtype(1e-3)
    found = backend.prior_density(np.array([[w], [0.0]], dtype), priors.SpikeSlab(0.5, 1.0, 1e-42))
    assert abs(found.score[0, 0] / -w - 1.0) < digits
    assert found.score[1, 0] == 0.0
    assert abs(found.log_density[0] - (np.log(0.5) - 0.5 * np.log(2 * np.pi) - 0.5 * float(w) ** 2)) < digits
    assert abs(found.log_density[1] / (np.log(0.5) - 0.5 * np.log(2 * np.pi * 1e-42)) - 1.0) < digits
    student = backend.prior_density(np.array([[w], [0.0]], dtype), priors.StudentT(3.0, 1e-21))
    assert abs(student.score[0, 0] * w / -4.0 - 1.0) < digits
    laplace = backend.prior_density(np.array([0.0], dtype), priors.Laplace(1e-40))
    assert abs(laplace.log_density[0] / -np.log(2e-40) - 1.0) < digits
    assert laplace.score[0] == 0.0
    for density in (found, student):
        assert density.log_density.dtype == density.score.dtype == dtype


@pytest.mark.parametrize("backend", [ORACLE, FAST[1]], ids=["oracle", "numba"])
def test_weights_whose_square_overflows(backend):
    """π = 0 and 1 leave one normal, whose score is finite."""
    for pi, precision in ((0.0, 1e3), (1.0, 2.0), (0.5, 2.0)):
        prior = priors.SpikeSlab(pi, 2.0, 1e-3)
        for w in (np.array([[1e200]]), np.array([[1e30]], np.float32)):
            found = backend.prior_density(w, prior)
            assert found.score.item() == pytest.approx(-w.item() * precision, rel=1e-6)
            assert found.log_density.item() < -1e30


def _student(degrees, width, w):
    """(log p, its largest summand, score) of one block with 60 digits and more."""
    mpmath.mp.dps = 60 + 2 * int(max(0.0, np.log10(degrees)))
    n, s, d = mpmath.mpf(degrees), mpmath.mpf(width), len(w)
    q = sum((mpmath.mpf(float(v)) / s) ** 2 for v in w)
    ratio = mpmath.loggamma((n + d) / 2) - mpmath.loggamma(n / 2) - mpmath.mpf(d) / 2 * mpmath.log(n / 2)
    parts = [ratio, -mpmath.mpf(d) / 2 * mpmath.log(2 * mpmath.pi), -d * mpmath.log(s), -(n + d) / 2 * mpmath.log1p(q / n)]
    return sum(parts), max(map(abs, parts)), [-(n + d) * mpmath.mpf(float(v)) / (n * s * s + q * s * s) for v in w]


@pytest.mark.parametrize("backend", [ORACLE, FAST[1]], ids=["oracle", "numba"])
@pytest.mark.parametrize(
    ("degrees", "width", "w"),
    [
        (1e12, 0.7, [0.3, -0.2]),
        (1e16, 0.7, [0.3, -0.2]),
        (1e300, 1.0, [2.0]),
        (1e-300, 1.0, [2.0, 1.0]),
        (3.0, 0.7, [1e160, 2e160]),
        (3.0, 1e170, [1e169]),
        (3.0, 1e-170, [1e-171, 0.0]),
        (1e16, 1e-158, [1e-158]),
        (5.0, 1e-170, [1e300]),
        (5.0, 1e170, [1e-300]),
        (20.0, 0.3989422804014327, [0.0, 1e-9]),
    ],
)
def test_student_t_keeps_its_digits(backend, degrees, width, w):
    """Where Γ's logarithms cancel, σ² or ‖w‖² overflows or vanishes: 4 ulp of the largest summand (8 for kernels' sums)."""
    value, largest, score = _student(degrees, width, w)
    found = backend.prior_density(np.array([w]), priors.StudentT(degrees, width))
    limit = ULPS if backend is ORACLE else 2 * ULPS
    assert abs(mpmath.mpf(float(found.log_density[0])) - value) <= limit * np.spacing(float(largest))
    for got, want in zip(found.score[0], score, strict=True):
        assert abs(mpmath.mpf(float(got)) - want) <= 16 * np.finfo(float).eps * abs(want) + np.nextafter(0.0, 1.0)


@pytest.mark.parametrize("prior", [priors.StudentT(3.0, 1e170), priors.Laplace(1e-170), priors.Horseshoe(1e170)])
def test_samples_of_a_variance_that_no_number_holds_are_refused(prior):
    with pytest.raises(InputError, match=r"width: got .*; for samples, whose variance is its square"):
        prior.scale([0.5])


def test_a_wide_laplace_prior_keeps_its_density():
    assert priors.Laplace(1.7e308).density(0.0).log_density == pytest.approx(-np.log(2.0) - np.log(1.7e308), rel=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("prior", PRIORS, ids=lambda p: f"{type(p).__name__}{getattr(p, 'pi', '')}")
def test_the_result_has_the_dtype_of_the_weights(prior, dtype):
    w = _w(prior, dtype, 0)
    for backend in (ORACLE, FAST[1]):
        found = backend.prior_density(w, prior)
        assert found.log_density.dtype == found.score.dtype == dtype
    assert ORACLE.prior_density(w.astype(np.int64), prior).score.dtype == np.float64


# Kernels --------------------------------------------------------------------------------------------------------------


def _w(prior, dtype, seed):
    rng = np.random.default_rng(seed)
    shape = (4001, int(rng.integers(1, 5))) if isinstance(prior, priors.SpikeSlab | priors.StudentT) else (4001,)
    w = rng.standard_normal(shape) * 10.0 ** rng.uniform(-4, 1, shape)
    w[:2] = 0.5 if isinstance(prior, priors.Horseshoe) else 0.0
    return w.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("prior", PRIORS, ids=lambda p: f"{type(p).__name__}{getattr(p, 'pi', '')}")
def test_kernels_agree_with_the_oracle(prior, dtype):
    """Within 16 roundings of the largest summand; that of spike and slab is the log-odds, whose error its score inherits."""
    u = float(np.finfo(dtype).eps) / 2
    for seed in range(4):
        w = _w(prior, dtype, seed)
        got, want = FAST[1].prior_density(w, prior), ORACLE.prior_density(w.astype(np.float64), prior)
        assert got.log_density.dtype == got.score.dtype == dtype
        summand, carried = np.abs(want.log_density) + 8.0, 1.0
        if isinstance(prior, priors.SpikeSlab):
            (a, b), square = prior.log_odds(w.shape[1]), np.square(w.astype(np.float64)).sum(axis=1)
            odds = np.where(np.isinf(a), 0.0, abs(a) + b * square)
            summand, carried = summand + odds, (1.0 + odds)[:, None]
        assert (np.abs(got.log_density - want.log_density) <= 16 * u * summand).all()
        r = np.abs(want.score) + float(np.finfo(dtype).tiny)
        if isinstance(prior, priors.SpikeSlab):
            r = (
                r
                + np.abs(w) * np.minimum(1.0 / prior.spike, 1.0 / prior.spike * np.exp(-np.maximum(0, a + b * square)))[:, None]
            )
        assert (np.abs(got.score - want.score) <= 16 * u * r * carried).all()
        assert abs(got.total - want.total) <= 16 * u * summand.sum()


@pytest.mark.parametrize("prior", PRIORS, ids=lambda p: f"{type(p).__name__}{getattr(p, 'pi', '')}")
def test_the_same_bits_for_every_number_of_threads(prior):
    w = np.concatenate([_w(prior, np.float32, 1)] * 20)
    one, two = (FAST[threads].prior_density(w, prior) for threads in (1, 2))
    assert one.log_density.tobytes() == two.log_density.tobytes()
    assert one.score.tobytes() == two.score.tobytes()
    assert one.total == two.total


def test_flattening_kernels_agree_with_the_oracle():
    """All magnitudes; logarithms within 8 ulp of their largest summand, which |log p| + |log(1−p)| + log|L| + 1 bounds."""
    p, log_gamma = _grid(400, seed=1)
    log_gamma, p = log_gamma[np.abs(log_gamma) < 1e200], p[np.abs(log_gamma) < 1e200]
    logs = np.where(p > 0, -np.log(np.where(p > 0, p, 1)), 0) + np.where(p < 1, -np.log1p(-np.where(p < 1, p, 0)), 0)
    size = 1.0 + logs + np.abs(log_gamma) + np.abs(np.log(np.abs(log_gamma) + 1e-300))
    eps = float(np.finfo(float).eps)
    for threads, backend in FAST.items():
        for name in ("flattening_profile", "flattening_density"):
            got, want = getattr(backend, name)(p, log_gamma), getattr(ORACLE, name)(p, log_gamma)
            exact, log = (0, 1) if name == "flattening_profile" else (1, 0)
            finite = np.isfinite(want[exact])
            assert (finite == np.isfinite(got[exact])).all()
            mine, theirs = got[exact][finite], want[exact][finite]
            assert (np.abs(mine - theirs) <= 8 * eps * np.abs(theirs) + 1e-323).all(), threads
            assert (np.abs(got[log] - want[log]) <= 8 * eps * size).all()
            assert abs(got.total - want.total) <= 8 * eps * size.sum()
