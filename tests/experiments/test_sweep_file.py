"""The file of a sweep: settings, seeds, labels, folders; what is wrong in it is named."""

from pathlib import Path

import pytest
from small_sweeps import TINY, plan

from refprune.errors import InputError
from refprune.experiments import sweep_file


def test_every_variant_meets_every_combination_of_the_grid(tmp_path):
    found = plan(
        tmp_path,
        TINY
        + """
        [grid]
        objective.beta = [0.001, 0.01]
        gates.protect = [[], ["section1"]]
        [[variants]]
        name = "a"
        [[variants]]
        name = "b"
        gates.estimator = "paired"
        """.replace("        ", ""),
    )
    assert [s.label for s in found.settings] == [
        f"{name}, beta {beta}, protect {protect}"
        for name in "ab"
        for beta in ("0.001", "0.01")
        for protect in ("none", "section1")
    ]
    last = found.settings[-1].configs[1]
    assert (last.seed, last.gates.estimator, last.objective.beta) == (1, "paired", 0.01)
    assert (last.gates.protect, last.training.epochs, last.network["sections"]) == (("section1",), 2, 2)
    jobs = sweep_file.jobs(found, tmp_path)
    assert [job.seed for job in jobs] == [0] * 8 + [1] * 8
    assert len({job.directory for job in jobs}) == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "experiment must be"),
        ("experiment = 'quickstart'\nseeds = []", "seeds must be"),
        ("experiment = 'quickstart'\nseeds = [1, 1]", "seeds must be"),
        ("experiment = 'quickstart'\nseed = 3", "unknown key seed"),
        ("experiment = 'quickstart'\n[[variants]]\nname = 'a'\nseeds = [2, 2]", "a: seeds must be"),
        ("experiment = 'quickstart'\n[[variants]]\nname = 'a'\nseeds = [1.5]", "a: seeds must be"),
        ("experiment = 'quickstart'\n[[variants]]\nname = 'a'\ngroup = 3", "a: group must be a string, got 3"),
        ("experiment = 'nowhere'", "nowhere"),
        ("experiment = 'quickstart'\n[grid]\ngates.initial = 0.5", "grid.gates.initial must be a list"),
        ("experiment = 'quickstart'\n[grid]\ngates.initial = [0.5, 2.0]", "initial 2.0: .*must lie in"),
        ("experiment = 'quickstart'\n[[variants]]\ngates.initial = 0.5", "needs a name"),
        ("experiment = 'quickstart'\n[[variants]]\nname = 'a'\n[[variants]]\nname = 'a'", "no name of its own"),
        ("experiment = 'quickstart'\nset = 3", "set must be a table"),
        ("experiment = 'quickstart'\n[set]\ngates.nonsense = 3", "unknown key gates.nonsense"),
        ("experiment = ", "not valid TOML"),
        ("experiment = 'quickstart'\nvariants = 3", "variants must be tables"),
        ("experiment = 'quickstart'\nvariants = []", "variants must be tables"),
        ("experiment = 'quickstart'\n[grid]\nseed = [0, 1]", "seed is set by seeds"),
        ("experiment = 'quickstart'\n[set]\nseed = 3", "seed is set by seeds"),
        ("experiment = 'quickstart'\n[grid]\ngates.initial = [0.1, 0.1]", "grid.gates.initial has a value twice"),
        ("experiment = 'quickstart'\n[grid]\nobjective.nu = [1, 1.0]", "grid.objective.nu has a value twice"),
        ("experiment = 'quickstart'\n[[variants]]\nname = 'sweep.json'", "is no name for a setting"),
        ("experiment = 'quickstart'\n[[variants]]\nname = '日本'", "'日本' is no name for a setting"),
        ("experiment = 'quickstart'\n[[variants]]\nname = '- %'", "'- %' is no name for a setting"),
        ("experiment = 'quickstart'\n[[variants]]\nname = 'ν 1'\n[[variants]]\nname = 'nu 1'", "'nu 1' is no name of its own"),
        ("experiment = 'quickstart'\nseeds = [-1]", "seeds must be a list of different integers of at least 0"),
        (f"experiment = 'quickstart'\n[[variants]]\nname = '{'x' * 201}'", "is too long for a folder's name"),
        ("experiment = 'quickstart'\n[[variants]]\nname = '..'", "is no name for a setting"),
        ("experiment = 'quickstart'\n[[variants]]\nname = 'a b'\n[[variants]]\nname = 'A-b'", "no name of its own"),
        (
            "experiment = 'quickstart'\n[grid]\ngates.initial = [0.5]\n[[variants]]\nname = 'p'\ngates.initial = 0.6",
            "gates.initial is set in more than one",
        ),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        plan(tmp_path, text)


def test_a_variant_may_have_its_own_seeds_and_group(tmp_path):
    """The first seed of every setting comes before the second of any."""
    variants = "[[variants]]\nname = 'a'\n[[variants]]\nname = 'b'\nseeds = [7]\ngroup = 'few'\ngates.estimator = 'paired'\n"
    found = plan(tmp_path, TINY + variants + "[grid]\nobjective.beta = [0.0, 1.0]\n")
    assert [(s.label, s.group, s.seeds) for s in found.settings] == [
        ("a, beta 0.0", "a", (0, 1)),
        ("a, beta 1.0", "a", (0, 1)),
        ("b, beta 0.0", "few", (7,)),
        ("b, beta 1.0", "few", (7,)),
    ]
    assert [c.seed for c in found.settings[2].configs] == [7]
    jobs = sweep_file.jobs(found, tmp_path)
    assert [(job.label[0], job.seed) for job in jobs] == [("a", 0), ("a", 0), ("b", 7), ("b", 7), ("a", 1), ("a", 1)]
    assert ["seed = 7" in job.configuration for job in jobs] == [False, False, True, True, False, False]


@pytest.mark.parametrize(
    ("label", "folder"),
    [
        ("layers only, ν 0.2", "layers-only-nu-0.2"),
        ("magnitude, 42 %", "magnitude-42"),
        ("ρ 0, α ½, θ₀ 0.9, β 1, γ 2, λ 3, τ 4, η 5", "rho-0-alpha-1-2-theta0-0.9-beta-1-gamma-2-lambda-3-tau-4-eta-5"),
        ("Σ, Ω, ϑ, ς, µ", "Sigma-Omega-theta-sigma-mu"),
        ("Äpfel à la carte", "Apfel-a-la-carte"),
        ("(a) b_c+d.e", "a-b_c+d.e"),
        ("momentum −1", "momentum-1"),
        ("日本 1", "1"),
    ],
)
def test_folders_have_ascii_names(label, folder):
    """Greek letters by their names, accents left out, no dash at the ends."""
    assert sweep_file.run_directory(Path("out"), label, 3) == Path("out") / folder / "seed-3"
