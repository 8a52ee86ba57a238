"""Candidates and scores (K6): against the compact network, zeroed batch-norms, loops and known cases."""

import dataclasses
import math

import numpy as np
import pytest
from scipy.special import rel_entr, softmax
from tolerance import assert_close, gamma

from refprune.analysis import candidates, stability
from refprune.analysis import scores as scores_
from refprune.analysis.scores import CRITERIA, Subject
from refprune.backend import ORACLE, load_backend
from refprune.errors import InputError
from refprune.exchange.trained import Trained
from refprune.formulas import cka
from refprune.passes.batch_loss import BatchLoss
from refprune.passes.parameters import initial_statistics, initialise
from refprune.passes.predictor import Predictor
from refprune.passes.tape import forward
from refprune.rounding.tolerance import UNIT, network_tolerance
from refprune.spec import cost, zoo
from refprune.spec.layers import Activation, Conv, Dense, Flatten, GlobalAveragePool, Section
from refprune.spec.network import Network
from refprune.streams import Streams

U = UNIT["float64"]
NETWORK = dataclasses.replace(zoo.resnet_cifar_keras((3, 4), width=2), input_shape=(3, 8, 8))
STREAMS = Streams(0)
PARAMS = {n: p + 0.2 * STREAMS.normal(n, 1, p.shape) for n, p in initialise(NETWORK, STREAMS).items()}
STATISTICS = {n: np.abs(s + 0.2 * STREAMS.normal(n, 1, s.shape)) for n, s in initial_statistics(NETWORK).items()}
X = STREAMS.normal("x", 0, (7, 3, 8, 8))
NAMES = ["stage0.block1", "stage0.block2", "stage1.block1", "stage1.block2", "stage1.block3"]


def subject(**changes):
    return dataclasses.replace(Subject(NETWORK, ORACLE, PARAMS, STATISTICS, X), **changes)


# Candidates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [20, 56])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_k_blocks_lose_k_minus_2(depth, shortcut):
    """K6, by removing the first candidate until there is none; never a stage's first, which would lose its shortcut."""
    network, blocks = zoo.resnet_cifar(depth, shortcut=shortcut), (depth - 2) // 6
    least = candidates.fewest_macs(network)
    assert [len(stage) for stage in candidates.stages(network)] == [blocks] * 3
    removed = 0
    while names := candidates.candidates(network):
        assert not {stage[0].name for stage in candidates.stages(network)} & set(names)
        before = cost.macs(network)
        network = candidates.without(network, names[:1]).network
        assert before - cost.macs(network) == 4_718_592
        removed += 1
    assert removed == 3 * (blocks - 2)
    assert [len(stage) for stage in candidates.stages(network)] == [2, 2, 2]
    assert cost.macs(network) == least


def test_the_figures_of_k6():
    network = zoo.resnet_cifar_keras()
    assert (cost.macs(network), candidates.fewest_macs(network)) == (125_747_840, 125_747_840 - 21 * 4_718_592)


def test_the_dearest_candidates_count():
    """Sections of different cost: the smallest network lacks the dearest ones."""

    def section(width):
        return Section((Dense(width), Activation("relu"), Dense(4)))

    network = Network((4,), (*map(section, (1, 9, 2, 5)), Dense(3)))
    assert candidates.fewest_macs(network) == sum(2 * 4 * width for width in (1, 2)) + 12


def test_shapes_and_shortcuts_decide():
    """A shortcut convolution in the middle of a stage is no candidate; without sections there is none."""
    path = (Conv(2, (1, 1)),)
    layers = (Section(path), Section(path, (Conv(2, (1, 1)),), name="keeps"), Section(path), GlobalAveragePool(), Dense(2))
    assert candidates.candidates(Network((2, 3, 3), layers)) == ["section3"]
    assert candidates.candidates(zoo.lenet5()) == []


# Representations ------------------------------------------------------------------------------------------------------


def feature_tolerance(network):
    """E2 at the classifier's input: the network without its classifier."""
    body = dataclasses.replace(network, layers=network.layers[:-1])
    params, statistics = {n: PARAMS[n] for n in body.parameter_shapes}, {n: STATISTICS[n] for n in body.statistics_shapes}
    loss = BatchLoss(body, ORACLE, params, X, np.zeros(len(X), int), statistics, train=False)
    return network_tolerance(loss, np.ones(0), unit=U).output


def test_representations_are_those_of_the_compact_networks():
    """R and every R_l against a plain pass of the network without l, and of that with l's last γ and β zeroed (K6)."""
    advanced = []
    full, lacking = scores_.representations(
        NETWORK, ORACLE, PARAMS, STATISTICS, X, NAMES, batch_size=3, advance=advanced.append
    )
    assert (list(lacking), advanced) == (NAMES, [3, 6, 7])

    def features(network, params):
        seen = {}
        forward(network, ORACLE, params, X, statistics=STATISTICS, observe=seen.__setitem__)
        return seen["globalaveragepool1"]

    assert_close("R", full, features(NETWORK, PARAMS), feature_tolerance(NETWORK))
    for name in NAMES:
        cut = candidates.without(NETWORK, [name])
        tolerance = feature_tolerance(cut.network)
        assert_close(name, lacking[name], features(cut.network, cut.arrays(PARAMS)), tolerance)
        zeroed = PARAMS | {
            f"{name}.conv2.bn.{key}": np.zeros_like(PARAMS[f"{name}.conv2.bn.{key}"]) for key in ("gain", "bias")
        }
        assert_close(name, lacking[name], features(NETWORK, zeroed), tolerance)
        assert np.abs(lacking[name] - full).max() > 1e6 * tolerance.max()


def test_compiled_in_float32_chooses_the_same():
    narrow = [{name: a.astype(np.float32) for name, a in group.items()} for group in (PARAMS, STATISTICS)]
    fast = Subject(NETWORK, load_backend("numba", threads=1), *narrow, X.astype(np.float32))
    assert fast.representations[0].dtype == np.float32
    for name in ("cka", "kl", "activation", "rank", "l1"):
        assert scores_.ranked(CRITERIA[name](fast))[0] == scores_.ranked(CRITERIA[name](subject()))[0]


def test_a_network_without_a_classifier():
    with pytest.raises(InputError, match="its last layer must be dense"):
        scores_.classifier(Network((3, 8, 8), (Flatten(),)))


# Scores ---------------------------------------------------------------------------------------------------------------


def test_cka():
    full, lacking = subject().representations
    scores = CRITERIA["cka"](subject())
    assert list(scores) == NAMES
    for name, score in scores.items():
        assert score == 1.0 - cka.cka(full, lacking[name], estimator="biased").value
    unbiased = {n: 1.0 - cka.cka(full, f, estimator="unbiased").value for n, f in lacking.items()}
    assert unbiased != scores


def test_cka_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match=r"no CKA exists \(no variation\)"):
        scores_.cka_score(np.ones((5, 2)), np.ones((5, 2)), ORACLE)


def test_controls_on_whole_numbers():
    """Every product is exact; by the formulas in Python's integers."""
    a, b = (np.random.default_rng(s).integers(-5, 9, (6, 3)) for s in (1, 2))

    def square(x, y):
        return sum(sum(int(x[k, i]) * int(y[k, j]) for k in range(6)) ** 2 for i in range(3) for j in range(3))

    want = 1 - square(a, b) / math.sqrt(square(a, a) * square(b, b))
    assert abs(scores_.uncentred_score(a, b) - want) <= gamma(40, U)
    rest = sum(int(d) ** 2 for d in (a - b).ravel()) / sum(int(d) ** 2 for d in a.ravel())
    assert abs(scores_.distance_score(a, b) - math.sqrt(rest)) <= gamma(40, U) * math.sqrt(rest)


def test_controls_see_what_cka_does_not():
    """A shift changes both; CKA none (K3)."""
    a = np.random.default_rng(1).standard_normal((20, 3))
    assert abs(scores_.cka_score(a, a + 5.0, ORACLE)) <= gamma(1000, U)
    assert scores_.uncentred_score(a, a + 5.0) > 0.1
    assert scores_.distance_score(a, a + 5.0) > 1


def test_l1_is_the_mean_size_of_a_weight():
    for name, score in CRITERIA["l1"](subject()).items():
        weights = [abs(float(w)) for part in ("conv1", "conv2") for w in PARAMS[f"{name}.{part}.weight"].ravel()]
        want = math.fsum(weights) / len(weights)
        assert abs(score - want) <= gamma(len(weights), U) * want


def paths():
    """Candidate → what its path gives, from a plain pass."""
    seen = {}
    forward(NETWORK, ORACLE, PARAMS, X, statistics=STATISTICS, observe=seen.__setitem__)
    return {name: seen[f"{name}.conv2.bn"] for name in NAMES}


def test_activation_is_the_mean_size_of_what_a_section_adds(monkeypatch):
    """7 images in one batch, and in batches of 3, of which the last has one image."""
    for batch in (scores_.BATCH, 3):
        monkeypatch.setattr(scores_, "BATCH", batch)
        scores = CRITERIA["activation"](subject())
        for name, y in paths().items():
            want = math.fsum(abs(float(v)) for v in y.ravel()) / y.size
            assert abs(scores[name] - want) <= gamma(y.size + 100, U) * want


def test_rank_of_maps_with_known_rank():
    """Zero weights: what is added is the bias, rank 1; with bias 0 rank 0; random maps have full rank."""
    changed = dict(PARAMS)
    for name, bias in (("stage0.block1", 1.0), ("stage1.block2", 0.0)):
        changed |= {f"{name}.conv2.bn.gain": 0.0 * PARAMS[f"{name}.conv2.bn.gain"]}
        changed |= {f"{name}.conv2.bn.bias": 0.0 * PARAMS[f"{name}.conv2.bn.bias"] + bias}
    scores = CRITERIA["rank"](subject(params=changed))
    assert (scores["stage0.block1"], scores["stage1.block2"]) == (1 / 8, 0.0)
    assert scores["stage0.block2"] > 0.5
    flat = zoo.residual_mlp(sections=3, width=4)
    params = initialise(flat, Streams(0))
    with pytest.raises(InputError, match="'rank' needs feature maps"):
        CRITERIA["rank"](Subject(flat, ORACLE, params, {}, np.ones((2, 1, 28, 28))))


def test_rank_of_maps_that_are_not_square():
    """Maps of 8×4 have rank 4 at most; a constant map has rank 1 of 4."""
    network = dataclasses.replace(NETWORK, input_shape=(3, 8, 4))
    x = STREAMS.normal("tall", 0, (4, 3, 8, 4))
    full = CRITERIA["rank"](Subject(network, ORACLE, PARAMS, STATISTICS, x))
    assert full["stage0.block1"] > 0.9
    assert max(full.values()) <= 1.0
    flat = PARAMS | {f"stage0.block1.conv2.bn.{key}": 0.0 * PARAMS[f"stage0.block1.conv2.bn.{key}"] for key in ("gain", "bias")}
    flat["stage0.block1.conv2.bn.bias"] = flat["stage0.block1.conv2.bn.bias"] + 1.0
    assert CRITERIA["rank"](Subject(network, ORACLE, flat, STATISTICS, x))["stage0.block1"] == pytest.approx(1 / 4)


def test_rank_looks_at_the_first_images_only(monkeypatch):
    """Behind two images all are grey, and their maps of low rank."""
    x = X.copy()
    x[2:] = 0.0
    whole, few = CRITERIA["rank"](subject(x=x)), CRITERIA["rank"](subject(x=x[:2]))
    assert all(whole[name] <= few[name] for name in NAMES)
    assert whole["stage0.block1"] < few["stage0.block1"]
    monkeypatch.setattr(scores_, "RANK_IMAGES", 2)
    assert CRITERIA["rank"](subject(x=x)) == few


def test_kl_against_scipy():
    """Σ p log(p/q) by scipy's rel_entr, from logits of compact networks."""
    p = softmax(Predictor(NETWORK, ORACLE, PARAMS, STATISTICS)(X), axis=1)
    for name, score in CRITERIA["kl"](subject()).items():
        cut = candidates.without(NETWORK, [name])
        q = softmax(Predictor(cut.network, ORACLE, cut.arrays(PARAMS), cut.arrays(STATISTICS))(X), axis=1)
        terms = rel_entr(p, q)
        want = terms.sum(axis=1).mean()
        logits = feature_tolerance(NETWORK).max() * np.abs(PARAMS["head.weight"]).sum(axis=1).max()
        assert abs(score - want) <= 4 * logits + gamma(1000, U) * np.abs(terms).sum(axis=1).mean()
        assert score > 0
        backwards = rel_entr(q, p).sum(axis=1).mean()
        assert abs(score - backwards) > 1e-6 * score


def test_random_depends_on_seed_and_round_only():
    scores = CRITERIA["random"](subject())
    assert scores == CRITERIA["random"](subject(x=X[:2]))
    assert (
        len({*scores.values(), *CRITERIA["random"](subject(round=1)).values(), *CRITERIA["random"](subject(seed=1)).values()})
        == 15
    )


def test_ranked():
    assert scores_.ranked({"a": 0.5, "b": 0.25, "c": 1.0}) == ("b", 0.25)
    assert scores_.ranked({"a": 0.5, "b": 0.5}) == ("a", 0.0)
    assert scores_.ranked({"a": 0.5}) == ("a", math.inf)


@pytest.mark.parametrize("scores", [{"a": math.nan, "b": 0.25}, {"a": 0.25, "b": math.nan}, {"a": math.nan}])
def test_a_score_that_is_no_number_chooses_nothing(scores):
    """Every comparison with it is false, so that the order of the sections would choose."""
    with pytest.raises(InputError, match=r"section '[ab]' has the score nan"):
        scores_.ranked(scores)


# How clearly ----------------------------------------------------------------------------------------------------------

TRAINED = Trained(NETWORK, PARAMS, STATISTICS)


def test_the_study_of_choices():
    choices = stability.study(TRAINED, ORACLE, X, sizes=(4, 7), repeats=5)
    whole = CRITERIA["cka"](subject())
    assert choices["cka"].scores == whole
    assert choices["cka"][1:3] == scores_.ranked(whole)
    assert choices["cka"].shares[7] == 1.0, "all images in another order choose the same"
    full, lacking = subject().representations
    rows = [Streams(0).permutation("stability/4", r, 7)[:4] for r in range(5)]
    picks = [min(NAMES, key=lambda n: scores_.distance_score(full[r], lacking[n][r])) for r in rows]
    other = stability.study(TRAINED, ORACLE, X, sizes=(4,), repeats=5, expected=picks[0])
    assert other["distance"].shares == {4: picks.count(picks[0]) / 5}
    table = stability.table(choices)
    assert [row[0] for row in table[1:6]] == NAMES
    assert sum(row[1].endswith("∗") for row in table) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": (8,)}, r"--subsets: must lie in 2 … 7 images, got 8"),
        ({"sizes": (1,)}, r"--subsets: must lie in 2 … 7 images, got 1"),
        ({"expected": "stage0.block0"}, "--expect: 'stage0.block0' is no candidate; allowed are stage0.block1,"),
    ],
)
def test_studies_that_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        stability.study(TRAINED, ORACLE, X, **options)


def test_a_study_needs_candidates():
    small = zoo.resnet_cifar_keras((2, 2), width=1)
    with pytest.raises(InputError, match="no section can be removed"):
        stability.study(Trained(small, {}, {}), ORACLE, X)
