"""Tables and pictures of a sweep: the frontier, accuracy against size, one knob."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_sweeps import PAGE, of_one_knob

from refprune.experiments import sweep_pictures, sweep_tables

# Accuracy against size ---------------------------------------------------------------------------------------------------


def on_the_frontier(where):
    """Those to which no other point is preferred, each against each; of equal ones the first."""

    def beaten(i):
        cost, accuracy = where[i]
        return any(
            c <= cost and a >= accuracy and ((c, a) != (cost, accuracy) or j < i) for j, (c, a) in enumerate(where) if j != i
        )

    return {i for i in range(len(where)) if not beaten(i)}


def check_frontier(function):
    coordinates = st.integers(0, 5).map(float)  # few values: many ties

    @settings(max_examples=300, derandomize=True, database=None, deadline=None)
    @given(st.lists(st.tuples(coordinates, coordinates), max_size=12))
    def check(where):
        found = function(where)
        assert set(found) == on_the_frontier(where)
        assert [where[i][0] for i in found] == sorted(where[i][0] for i in found)

    check()


def test_the_frontier_is_what_nothing_is_preferred_to():
    check_frontier(sweep_tables.frontier)


def test_the_check_of_the_frontier_finds_mistakes():
    """Planted: equally accurate points at a higher price stay; ties in cost in the wrong order; accuracy not looked at."""

    def sweep_line(order, better):
        def wrong(where):
            best, found = -1.0, []
            for i in sorted(range(len(where)), key=lambda i: order(*where[i])):
                if better(where[i][1], best):
                    best = where[i][1]
                    found.append(i)
            return found

        return wrong

    wrong = (
        sweep_line(lambda c, a: (c, -a), lambda a, best: a >= best),
        sweep_line(lambda c, a: (c, a), lambda a, best: a > best),
        sweep_line(lambda c, a: (c, -a), lambda a, best: True),
    )
    for function in wrong:
        with pytest.raises(AssertionError):
            check_frontier(function)
    check_frontier(sweep_line(lambda c, a: (c, -a), lambda a, best: a > best))


def test_the_table_of_accuracy_against_size():
    head, *lines = sweep_tables.size_rows(PAGE)
    whole = "1000 ± 0 (100.0 ± 0.0 %)", "500 ± 0 (100.0 ± 0.0 %)"
    assert head[3:] == ("test accuracy, %", "MACs per image", "parameters", "on the frontier of")
    assert lines == [
        ("whole", "unpruned", "trained", "98.00 ± 1.41", *whole, "MACs per image, parameters"),
        ("layers", "layers only", "pruned", "95.00", "400 (40.0 %)", "100 (20.0 %)", "MACs per image"),
        ("units 1", "units only", "pruned", "96.00", "500 (50.0 %)", "90 (18.0 %)", "MACs per image, parameters"),
        ("units 2", "units only", "pruned", "94.00", "100 (10.0 %)", "200 (40.0 %)", "MACs per image"),
    ]


def test_the_picture_of_accuracy_against_size():
    """Its lines are the frontiers, its markers the means, its bars the standard deviations, its dots the runs."""
    left, right = sweep_pictures.accuracy_picture(PAGE).axes
    of_all = {"MACs": [(100, 94), (400, 95), (500, 96), (1000, 98)], "parameters": [(90, 96), (500, 98)]}
    of_units = {"MACs": [(100, 94), (500, 96)], "parameters": [(90, 96)]}
    for axes, cost in ((left, "MACs"), (right, "parameters")):
        steps = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
        drawn = [np.round(line.get_xydata(), 9).tolist() for line in steps]
        assert drawn[0] == [list(p) for p in of_all[cost]]
        assert drawn[3] == [list(p) for p in of_units[cost]]
        assert [c.get_label() for c in axes.containers] == ["unpruned, trained", "layers only, pruned", "units only, pruned"]
        marked = [c.lines[0].get_xydata().tolist() for c in axes.containers]
        assert np.round(marked[0], 9).tolist() == [[1000 if cost == "MACs" else 500, 98]]
        ((low, high),) = [bar.get_segments()[0][:, 1] for bar in axes.containers[0].lines[2][1:]]
        assert high - low == pytest.approx(2 * 2**0.5, rel=1e-12)
        (dashed,) = [line for line in axes.lines if line.get_label() == "best without pruning"]
        assert round(dashed.get_ydata()[0], 9) == 98
        (upper,) = axes.child_axes
        to_share = upper._functions[0]
        assert to_share(1000 if cost == "MACs" else 500) == 1.0
        assert axes.get_xscale() == "log"
    assert [len(line.get_xdata()) for line in left.lines if line.get_marker() == "."] == [2, 1, 1, 1]
    assert sum(len(s.get_texts()) for s in left.figure.legends) == 5


def test_networks_of_different_sizes_have_no_common_share():
    page = copy.deepcopy(PAGE)
    page["results"][1]["runs"]["pruned"]["macs_share"] = [0.8]
    left, right = sweep_pictures.accuracy_picture(page).axes
    assert (len(left.child_axes), len(right.child_axes)) == (0, 1)


def test_a_knob_is_the_one_key_that_differs():
    assert sweep_pictures.knob(of_one_knob([0.1, 1.0])) == "objective.nu"
    words = of_one_knob([0.1, 1.0])
    words["results"][0]["set"]["objective.nu"] = "much"
    for page in (of_one_knob([0.1]), words, of_one_knob([True, False]), PAGE):
        assert sweep_pictures.knob(page) is None
    two = of_one_knob([0.1, 1.0])
    two["results"][0]["set"]["training.epochs"] = 3
    assert sweep_pictures.knob(two) is None
    two["results"][1]["set"]["training.epochs"] = 4
    assert sweep_pictures.knob(two) is None


def test_the_picture_of_a_knob(tmp_path):
    """Lines through the means in the order of the values, bars of a standard deviation, a dot a run."""
    page = of_one_knob([3.0, 0.0, 1.0])
    accuracy, left = sweep_pictures.pictures(page, tmp_path)["knob"].axes
    drawn = {c.get_label(): np.round(c.lines[0].get_xydata(), 9).tolist() for c in (*accuracy.containers, *left.containers)}
    size = [[0.0, 100.0], [1.0, 50.0], [3.0, 25.0]]
    assert drawn == {
        "test accuracy": [[0.0, 91.0], [1.0, 91.0], [3.0, 91.0]],
        "MACs per image": size,
        "parameters": size,
        "sections": [[0.0, 50.0], [1.0, 50.0], [3.0, 50.0]],
        "units": [[0.0, 25.0], [1.0, 25.0], [3.0, 25.0]],
    }
    low, high = accuracy.containers[0].lines[2][0].get_segments()[0][:, 1]
    assert high - low == pytest.approx(2 * 2**0.5, rel=1e-12)
    assert [len(line.get_xdata()) for line in accuracy.lines if line.get_marker() == "."] == [2, 2, 2]
    assert (accuracy.get_xscale(), left.get_ylim()[0]) == ("linear", 0.0)
    assert sweep_pictures.knob_picture(of_one_knob([0.1, 1.0]), "objective.nu").axes[0].get_xscale() == "log"


def test_a_setting_without_gates_on_units_has_no_point_there():
    """As ρ = 1, which fixes them."""
    page = of_one_knob([0.5, 1.0], key="objective.balance")
    page["results"][1]["runs"]["pruned"] |= {"units": [0.0, 0.0], "units_at_start": [0.0, 0.0]}
    _, left = sweep_pictures.knob_picture(page, "objective.balance").axes
    points = {c.get_label(): c.lines[0].get_xdata().tolist() for c in left.containers}
    assert points == {"MACs per image": [0.5, 1.0], "parameters": [0.5, 1.0], "sections": [0.5, 1.0], "units": [0.5]}


def test_a_knob_without_sections_or_results(tmp_path):
    page = of_one_knob([0.1, 0.2])
    for result in page["results"]:
        result["runs"]["pruned"] |= {"sections_at_start": [0.0, 0.0], "units_at_start": [0.0, 0.0]}
    _, left = sweep_pictures.knob_picture(page, "objective.nu").axes
    assert [c.get_label() for c in left.containers] == ["MACs per image", "parameters"]
    page["results"][0] |= {"runs": {}, "seeds": []}  # failed
    _, left = sweep_pictures.pictures(page, tmp_path)["knob"].axes
    assert len(left.containers[0].lines[0].get_xdata()) == 1


def test_pictures_where_every_run_failed(tmp_path):
    empty = {**PAGE, "results": [{**PAGE["results"][0], "seeds": [], "runs": {}}]}
    assert len(sweep_tables.size_rows(empty)) == 1
    assert set(sweep_pictures.pictures(empty, tmp_path)) == {"accuracy"}


def test_networks_without_gates_have_no_pictures_of_pruning(tmp_path):
    page = of_one_knob([0.1, 0.2], key="optimiser.learning_rate")
    for result in page["results"]:
        result["runs"] = {"trained": result["runs"]["pruned"]}
    assert set(sweep_pictures.pictures(page, tmp_path)) == {"accuracy"}
