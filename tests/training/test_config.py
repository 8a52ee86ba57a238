"""Experiments as TOML: presets, round trip, overrides, and each key by itself: names, types, choices, ranges."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refprune.errors import InputError
from refprune.gates.estimators import ESTIMATORS
from refprune.training import config, presets
from refprune.training.config import Config, Data, Gates, Objective, Optimiser, Training


def refused(values, *words):
    """`values` is refused by one sentence that holds all the words."""
    __tracebackhide__ = True
    with pytest.raises(InputError) as caught:
        config.from_dict(values, where="here.toml")
    for word in ("here.toml", *words):
        assert word in str(caught.value)


def nested(key, value):
    table, dot, name = key.rpartition(".")
    return {table: {name: value}} if dot else {name: value}


# Presets, files, round trip -----------------------------------------------------------------------------------------------


def test_the_quick_start_is_among_the_presets():
    assert "quickstart" in presets.experiments()


@pytest.mark.parametrize("name", presets.experiments())
def test_every_preset_loads_under_its_name(name):
    settings = config.load(name)
    assert settings.name == name
    settings.build_network()


def reread(settings, folder):
    path = folder / "again.toml"
    path.write_text(config.to_toml(settings), encoding="utf-8")
    return config.load(str(path))


@pytest.mark.parametrize("name", presets.experiments())
def test_presets_survive_the_round_trip(name, tmp_path):
    assert reread(config.load(name), tmp_path) == config.load(name)


def test_a_toml_file_is_named_after_itself_unless_it_says_otherwise(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("seed = 3\n")
    assert config.load(str(path)) == Config(name="mine", seed=3)
    path.write_text('name = "other"\n')
    assert config.load(str(path)).name == "other"


positive = st.floats(0.0, 1e300, allow_subnormal=True)
texts = st.text(st.characters(codec="utf-8", max_codepoint=0xFFFF), max_size=12)


@st.composite
def settings_of_all_kinds(draw):
    """A Config that is allowed, every field drawn."""
    kind = draw(st.sampled_from(sorted(ESTIMATORS)))
    threshold = draw(st.floats(1e-6, 0.5))
    undecided = draw(st.sampled_from(["compare", "continue"]))
    schedule = "constant" if undecided == "continue" else draw(st.sampled_from(config.SCHEDULES))
    floor = draw(st.floats(1e-7, min(threshold, 0.499))) if ESTIMATORS[kind].needs_interior else 0.0
    epochs = draw(st.integers(1, 99))
    free = undecided == "compare" and epochs > 1
    decide_epoch = draw(st.integers(0, epochs - 1)) if free else 0
    gates = Gates(
        initial=draw(st.floats(threshold, 1.0, exclude_min=True)),
        learning_rate=draw(positive),
        unit_learning_rate=draw(positive),
        removal_every=draw(st.integers(1, 99)),
        compare_at_most=draw(st.integers(0, 99)),
        estimator=kind,
        gate_samples=draw(st.integers(1, 9)) if ESTIMATORS[kind].many_samples else 1,
        warmup_epochs=draw(st.floats(0.0, decide_epoch or epochs, exclude_max=True, allow_subnormal=False)),
        threshold=threshold,
        floor=floor,
        undecided=undecided,
        max_epochs=draw(st.integers(epochs, 200)),
        decide_epoch=decide_epoch,
        empty=draw(st.sampled_from(["close", "keep_constant"])),
    )
    training = Training(
        epochs=epochs,
        batch_size=draw(st.integers(1, 10**6)),
        section_scale=draw(positive),
        backend=draw(st.sampled_from(["oracle", "numba"])),
        dtype=draw(st.sampled_from(["float32", "float64"])),
        threads=draw(st.integers(0, 64)),
        log_every=draw(st.integers(1, 1000)),
        checkpoint_every=draw(st.integers(0, 1000)),
    )
    network = draw(st.sampled_from([{"name": "lenet-5"}, {"name": "residual-mlp", "sections": 3, "width": 5}]))
    per, decay = draw(st.sampled_from(["sample", "data_set"])), draw(st.sampled_from(["all", "weights"]))
    objective = Objective(
        beta=draw(positive),
        nu=draw(positive),
        alpha=draw(st.floats(0.0, 1.0)),
        balance=draw(st.floats(0.0, 1.0)),
        weight_decay=draw(positive),
        per=per,
        decay=decay,
    )
    return Config(
        name=draw(texts),
        seed=draw(st.integers(0, 2**62)),
        unpruned=draw(st.booleans()),
        network=network,
        from_scratch=draw(st.booleans()),
        data=Data(draw(texts), draw(st.integers(0, 99)), draw(st.integers(0, 99))),
        objective=objective,
        gates=gates,
        optimiser=Optimiser(draw(positive), draw(st.floats(0.0, 1.0, exclude_max=True)), schedule),
        training=training,
    )


@given(settings=settings_of_all_kinds())
def test_dict_round_trip(settings):
    assert config.from_dict(config.to_dict(settings)) == settings


@given(settings=settings_of_all_kinds())
def test_toml_round_trip(settings, tmp_path_factory):
    """Catches a value that TOML writes otherwise than JSON, and rounded floats: a resumed run reads this file."""
    assert reread(settings, tmp_path_factory.mktemp("toml")) == settings


def test_a_name_beyond_the_basic_plane_survives_the_round_trip(tmp_path):
    assert reread(Config(name="\N{PARTY POPPER}"), tmp_path).name == "\N{PARTY POPPER}"


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(InputError, match=r"none\.toml: cannot be read|neither a file nor a known name"):
            config.load(str(path))


def test_a_file_that_is_not_toml_is_named_with_the_place(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("seed = \n")
    with pytest.raises(InputError, match=r"bad\.toml: not valid TOML.*line 1"):
        config.load(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"bad\.toml: cannot be read"):
        config.load(str(path))


def test_an_unknown_experiment_lists_the_known_ones():
    with pytest.raises(InputError, match=r"'quikstart'.*quickstart"):
        config.load("quikstart")


# Overrides ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("seed=7", lambda c: c.seed, 7),
        ("unpruned=false", lambda c: c.unpruned, False),
        ("gates.estimator=paired", lambda c: c.gates.estimator, "paired"),
        ('gates.estimator="paired"', lambda c: c.gates.estimator, "paired"),
        ("gates.initial=1", lambda c: c.gates.initial, 1.0),
        ("objective.beta=2e-3", lambda c: c.objective.beta, 0.002),
        ("objective.beta=1_000", lambda c: c.objective.beta, 1000.0),
        ("data.name=mnist", lambda c: c.data.name, "mnist"),
        ("data.name=a=b", lambda c: c.data.name, "a=b"),
        ("name=two words", lambda c: c.name, "two words"),
        ('gates.protect=["a", "b"]', lambda c: c.gates.protect, ("a", "b")),
        (" gates.initial =0.25", lambda c: c.gates.initial, 0.25),
        ("network.width=16", lambda c: c.network["width"], 16),
        ('network={name="lenet-5"}', lambda c: c.network, {"name": "lenet-5"}),
    ],
)
def test_overrides(override, read, value):
    settings = config.load("quickstart", [override])
    assert read(settings) == value
    assert type(read(settings)) is type(value)


def test_the_last_override_wins_and_the_rest_stays():
    settings = config.load("quickstart", ["seed=1", "gates.initial=0.25", "seed=2"])
    plain = config.load("quickstart")
    assert settings == dataclasses.replace(plain, seed=2, gates=dataclasses.replace(plain.gates, initial=0.25))


@pytest.mark.parametrize("override", ["seed", "=1", "", "gates.initial"])
def test_an_override_without_key_or_value_is_refused(override):
    with pytest.raises(InputError, match="expected key=value, as in"):
        config.load("quickstart", [override])


def test_an_override_below_a_plain_value_is_refused():
    with pytest.raises(InputError, match=r"--set name\.x=1: name is not a table"):
        config.load("quickstart", ["name.x=1"])


@pytest.mark.parametrize(
    "override",
    [
        "gates=3",
        "gates.protect=section1",
        "gates.protect=[1]",
        "data.name=3",
        "seed=abc",
        "network=3",
        "gates.x.y=1",
        "a.b.c=1",
        "seed.x=1",
    ],
)
def test_overrides_are_checked_like_the_file(override):
    with pytest.raises(InputError, match="quickstart: "):
        config.load("quickstart", [override])


# Unknown keys, types, choices, ranges -------------------------------------------------------------------------------------

UNKNOWN = {
    "sed": "seed",
    "optimizer.momentum": "optimiser",
    "gates.estimater": "gates.estimator",
    "gates.tresold": "gates.threshold",
    "training.batchsize": "training.batch_size",
    "data.nam": "data.name",
    "objective.betta": "objective.beta",
    "optimiser.learning-rate": "optimiser.learning_rate",
}


@pytest.mark.parametrize(("key", "near"), UNKNOWN.items())
def test_an_unknown_key_names_the_nearest_known_one(key, near):
    refused(nested(key, 1), f"unknown key {key.split('.')[0] if key.startswith('optimizer') else key}", f"did you mean {near}?")


def test_an_unknown_key_like_no_other_lists_the_known_ones():
    with pytest.raises(InputError, match=r"unknown key gates\.zzz \(known: initial, ") as caught:
        config.from_dict({"gates": {"zzz": 1}})
    assert "did you mean" not in str(caught.value)


def keys():
    """Every key of the schema with its default, but the network's."""
    top = {f.name: f.default for f in dataclasses.fields(Config) if f.default is not dataclasses.MISSING}
    inner = {f"{t}.{f.name}": f.default for t, kind in config.TABLES.items() for f in dataclasses.fields(kind)}
    return top | inner


@pytest.mark.parametrize(("key", "default"), keys().items())
def test_wrong_types_are_refused(key, default):
    """Catches a bool taken as a number, a float as an integer, a number as a string."""
    wrong = {
        str: (1, True, 0.5, ["x"]),
        bool: (1, 0, "true"),
        int: (True, 1.5, 2.0, "1"),
        float: (True, "1", [1.0]),
        tuple: ("x", 1, [1]),
    }
    for value in (*wrong[type(default)], {"a": 1}):
        refused(nested(key, value), f"{key} must be of type {type(default).__name__}, got {value!r}")


@pytest.mark.parametrize("table", list(config.TABLES))
def test_a_table_must_be_a_table(table):
    refused({table: 3}, f"{table} must be a table, got 3")


@pytest.mark.parametrize("network", [3, {}, {"width": 3}, {"name": 3}])
def test_the_network_must_have_a_name(network):
    refused({"network": network}, "network must be a table with a name")


CHOICES = {
    "data.augmentation": ["none", "crop_flip"],
    "objective.per": ["sample", "data_set"],
    "objective.decay": ["all", "weights"],
    "gates.estimator": ["exact", "paired", "taylor", "reinforce", "arm", "disarm"],
    "gates.undecided": ["compare", "continue"],
    "gates.evaluation": ["mode", "mean", "sampled"],
    "gates.empty": ["close", "keep_constant"],
    "gates.rule": ["threshold", "attraction", "both"],
    "optimiser.schedule": ["constant", "cosine", "one_cycle", "warmup_stable_decay", "robbins_monro"],
    "training.backend": ["oracle", "numba"],
    "training.dtype": ["float32", "float64"],
}


@pytest.mark.parametrize(("key", "allowed"), CHOICES.items())
def test_choices(key, allowed):
    refused(nested(key, "other"), f"{key} = 'other' is not known; allowed are", *allowed)
    needed = {"gates": {"floor": 0.1, "threshold": 0.1}, "training": {"epochs": 1}, "objective": {"beta": 0.1}}
    for value in allowed:
        table, name = key.split(".")
        values = needed | {table: needed.get(table, {}) | {name: value} | ({"max_epochs": 1} if table == "gates" else {})}
        assert getattr(getattr(config.from_dict(values), table), name) == value


INF = math.inf
RANGES = {
    "seed": (0, INF),
    "data.train_limit": (0, INF),
    "data.holdout": (0, INF),
    "data.padding": (0, INF),
    "objective.beta": (0, INF),
    "objective.weight_decay": (0, INF),
    "objective.nu": (0, INF),
    "objective.alpha": (0, 1),
    "objective.balance": (0, 1),
    "optimiser.schedule_power": (0.51, 1),
    "optimiser.schedule_offset": (1, INF),
    "gates.initial": (0, 1),
    "gates.learning_rate": (0, INF),
    "gates.magnitude": (0, 1),
    "gates.magnitude_epoch": (1, INF),
    "gates.gate_samples": (1, INF),
    "gates.paired_epochs": (0, INF),
    "gates.unit_learning_rate": (0, INF),
    "gates.removal_every": (1, INF),
    "gates.compare_at_most": (0, INF),
    "gates.warmup_epochs": (0, INF),
    "gates.threshold": (0, 0.5),
    "gates.floor": (0, 0.5),
    "gates.max_epochs": (0, INF),
    "gates.decide_epoch": (0, INF),
    "gates.kappa_factor": (1, INF),
    "gates.kappa_warmup": (1, INF),
    "optimiser.learning_rate": (0, INF),
    "optimiser.momentum": (0, 1),
    "training.epochs": (1, INF),
    "training.batch_size": (1, INF),
    "training.section_scale": (0, INF),
    "training.threads": (0, INF),
    "training.log_every": (1, INF),
    "training.checkpoint_every": (0, INF),
}


def test_every_number_has_a_range():
    """Catches a new key that nobody checks."""
    assert {key for key, default in keys().items() if type(default) in (int, float)} == set(RANGES)


def test_infinity_lies_in_no_range():
    """And the message does not say that it does."""
    refused({"objective": {"nu": INF}}, "objective.nu = inf must lie in [0.0, inf)")
    refused({"objective": {"alpha": 2.0}}, "objective.alpha = 2.0 must lie in [0.0, 1.0]")


@pytest.mark.parametrize(("key", "bounds"), RANGES.items())
def test_ranges(key, bounds):
    low, high = bounds
    default = keys()[key]
    outside = [low - 1, *([] if high == INF else [high + 1])]
    if isinstance(default, float):
        outside = [math.nextafter(low, -INF), math.nan, INF, -INF, *([] if high == INF else [math.nextafter(high, INF)])]
    for value in outside:
        refused(nested(key, value), f"{key} = {value} must lie in [")
    needed = {
        "floor": 0.0,
        "threshold": 0.5,
        "initial": 1.0 if key in ("gates.floor", "gates.magnitude") else 0.9,
        "estimator": "reinforce" if key == "gates.gate_samples" else "taylor",
    }
    inside = ([] if key == "gates.initial" else [low]) + ([] if high == INF or key == "optimiser.momentum" else [high])
    if key == "gates.floor":
        inside = [0.0, 0.4]
        needed["threshold"] = 0.4
    for value in inside:
        values = {"gates": needed | ({"floor": 0.1} if key == "gates.gate_samples" else {})}
        table, name = key.split(".") if "." in key else ("", key)
        values = values | ({table: values.get(table, {}) | {name: value}} if table else {name: value})
        settings = config.from_dict(values)
        got = getattr(getattr(settings, table), name) if table else getattr(settings, name)
        assert got == value
        assert type(got) is type(default)
