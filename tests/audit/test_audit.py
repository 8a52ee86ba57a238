"""The audit: its catalogue is complete and points at code, quick claims hold, and it fails where it must."""

import dataclasses
import functools
import importlib.util
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import sympy
from scipy import stats

from refprune.audit import run
from refprune.audit.catalogue import (
    FALSE_ALARM,
    LETTERS,
    Claim,
    Context,
    Finding,
    catalogue,
    close,
    exact,
    location,
    neighbours,
    resolve,
    select,
    worst,
    z_bound,
    z_score,
)
from refprune.audit.claims.hyper_prior import is_zero
from refprune.audit.mathml import mathml
from refprune.cli import main as cli
from refprune.errors import InputError
from refprune.mistakes import layers
from refprune.mistakes.catalogue import MISTAKES
from refprune.mistakes.planting import planted
from validation.mistakes import audit as mutants

ROOT = Path(__file__).parents[2]
SPEC = (ROOT / "validation" / "SPEC.md").read_text(encoding="utf-8")


def test_every_number_of_the_spec_has_a_claim():
    numbers = set(re.findall(r"^([A-Z]\d+)  ", SPEC, flags=re.M))
    assert {c.number for c in catalogue()} == numbers
    assert "".join(dict.fromkeys(c.letter for c in catalogue())) == LETTERS


@pytest.mark.parametrize("claim", catalogue(), ids=lambda c: c.number)
def test_every_claim_is_whole(claim):
    """At least two witnesses, by different methods, and code that exists."""
    assert len({method for method, _ in claim.witnesses}) == len(claim.witnesses) >= 2
    for code in claim.code:
        file, _, line = location(code).rpartition(":")
        assert (ROOT / file).is_file()
        assert int(line) > 0
    assert claim.source.strip()
    assert "<math" in mathml(claim.formula)


@pytest.mark.parametrize(
    "only", ["P", "F", "N", "K1,K2,K3,K4,K7", "G", "E", "O1,O2,O3,O4,O5,O6,O7,O8,O9,O10", "K6", "D3,D5,D7", "C"]
)
def test_claims_hold(only):
    red = [r for r in run.run_audit(select(only), Context(seed=0)) if not r.holds]
    assert not red, "\n".join(map(run.row, red))


#: Witnesses of D of seconds each, which the whole audit asks: flows of networks, and integration over many systems.
LONG = re.compile("networks with a proved κ|flows of networks|projected Euler steps|integration: (in|from) H")


@pytest.mark.parametrize("number", ["D2", "D4", "D6"])
def test_quick_witnesses_of_the_dynamics(number):
    (claim,) = select(number)
    quick = dataclasses.replace(claim, witnesses=[w for w in claim.witnesses if not LONG.search(w[0])])
    found = run.run_audit([quick], Context(seed=0))
    assert found
    assert all(r.holds for r in found), "\n".join(map(run.row, found))
    assert len(found) < len(claim.witnesses)


def test_another_seed():
    assert run.holds(run.run_audit(select("P,F,O8,K3"), Context(seed=11)))


# It must be able to fail ----------------------------------------------------------------------------------------------

CHEAP = {
    "N2", "N3", "N5", "P2", "P4", "F2", "F3", "F6", "O3", "O7", "O8", "D3", "D4",
    "D5", "D6", "D7", "C2", "C3", "K1", "G2", "G3", "E1",
}  # fmt: skip
QUICK = [m for m in MISTAKES if set(m.claims) <= CHEAP]


@pytest.mark.parametrize("mistake", QUICK, ids=lambda m: m.name)
def test_a_planted_mistake_turns_its_claims_red_and_no_other(mistake):
    """`python -m validation.mistakes.audit` does so for all mistakes."""
    outcome = mutants.try_out(mistake)
    assert outcome.killed, outcome


def test_every_claim_has_a_mistake():
    assert {n for m in MISTAKES for n in m.claims} == {c.number for c in catalogue()}
    assert len({m.name for m in MISTAKES}) == len(MISTAKES)
    assert all(resolve(m.target) for m in MISTAKES)


def test_a_mistake_is_taken_back():
    before = [resolve(m.target) for m in MISTAKES]
    for mistake in MISTAKES:
        with planted(mistake):
            assert resolve(mistake.target) not in before
    assert all(a is b for a, b in zip(before, [resolve(m.target) for m in MISTAKES], strict=True))


def test_a_survivor_is_reported():
    """A mutant that declares too little, or too much, is not killed."""
    mistake = next(m for m in MISTAKES if m.claims == ("F2", "F6"))
    short, long = (dataclasses.replace(mistake, claims=c) for c in (("F2",), ("F2", "F6", "P5")))
    assert mutants.try_out(short).extra == ("F6",)
    assert mutants.verdict(mutants.try_out(short)) == "SURVIVES: red beside F6"
    assert mutants.try_out(long).missed == ("P5",)


def test_an_error_is_no_kill_unless_it_is_declared():
    """Every witness of F2 asks the function that is broken."""

    def broken(f):
        def wrong(*a, **k):
            raise RuntimeError("no answer")

        return wrong

    mistake = mutants.Mistake("no penalty at all", "formulas.hyper_prior:log_pi_star", broken, ("F2",))
    outcome = mutants.try_out(mistake)
    assert outcome.raised == ("F2",)
    assert not outcome.killed
    assert mutants.try_out(dataclasses.replace(mistake, raises=("F2",))).killed


def test_a_witness_that_raises_gives_the_next_its_turn():
    claim = Claim("X1", "", "x", "", ())
    claim.witness("raises")(lambda context: 1 / 0)
    claim.witness("sees")(lambda context: exact(1))
    claim.witness("is not asked")(lambda context: exact(0))
    assert [r.method for r in run.run_audit([claim], Context(), stop=True)] == ["raises", "sees"]
    assert len(run.run_audit([claim], Context())) == 3


def test_a_wrong_version_is_made_of_the_right_function():
    """What a mistake's own module imports stays right: a mutant that calls itself would raise, and find nothing."""
    mistake = mutants.Mistake("twice", "arrays:per_channel", lambda f: lambda *a: None, ())
    with planted(mistake):
        assert layers.per_channel is not resolve("arrays:per_channel")
    assert layers.per_channel is resolve("arrays:per_channel")


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: m.name)
def test_the_code_of_a_mistake_is_cited(mistake):
    assert neighbours([mistake.target]), f"no claim cites {mistake.target}"


def test_findings():
    nan = float("nan")
    assert not Finding(nan, 1.0).holds
    assert not close([1.0, nan], [1.0, 1.0], 1.0, 10).holds
    assert not close([2.0], [1.0], 1.0, 10).holds
    assert close([float("inf")], [float("inf")], 1.0, 0).holds
    assert worst(Finding(1.0, 100.0), Finding(3.0, 2.0), Finding(90.0, 100.0)).deviation == 3.0
    assert worst(exact(0), Finding(0.5, 1.0)).bound == 1.0
    z = Context(seed=3).normal("z", 4000, 2)
    assert z_score(z, 0.0).holds
    assert not z_score(z, [0.0, 0.2]).holds
    assert 5.0 < z_bound(2) < z_bound(200) < 6.5
    for samples in (60, 400):
        assert 3 * 2 * stats.t.sf(z_bound(3, samples), samples - 1) == pytest.approx(FALSE_ALARM, rel=1e-6)


def test_symbolic_zeros_assume_nothing():
    """log (1−x)² is 2 log(1−x) for x < 1 only; of x > 0 products do expand."""
    x, y = sympy.symbols("x y", positive=True)
    assert not is_zero(sympy.log((1 - x) ** 2) - 2 * sympy.log(1 - x))
    assert not is_zero(sympy.log(sympy.exp(x) - 1))
    assert is_zero(sympy.log((x + x * y) / y) - sympy.log(x) - sympy.log(1 + y) + sympy.log(y))


def test_a_witness_that_raises_is_red_and_an_empty_audit_is_not_green():
    broken = Claim("X1", "", "x", "", ())
    broken.witness("raises")(lambda context: 1 / 0)
    (found,) = run.run_audit([broken], Context())
    assert not found.holds
    assert "ZeroDivisionError" in run.row(found)
    assert not run.holds([])
    assert "ERROR" in run.row(found)


def test_neighbours_are_those_that_cite_the_code():
    assert [c.number for c in neighbours(["formulas.hyper_prior:kl_at_pi_star"])] == ["F3", "F6"]


# The command ----------------------------------------------------------------------------------------------------------


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.outside = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.outside += [v for k, v in attrs if k in ("src", "href") and v and not v.startswith("#")]


def test_the_command_writes_table_json_and_page(tmp_path, capsys):
    files = tmp_path / "a.html", tmp_path / "a.json"
    code = cli.main(["audit", "--only", "F3,F5", "--report", str(files[0]), "--json", str(files[1])])
    out = capsys.readouterr().out
    assert code == 0
    assert "2 claims, 5 witnesses" in out
    assert "all hold" in out
    found = json.loads(files[1].read_text(encoding="utf-8"))
    assert found["holds"]
    assert list(found["claims"]) == ["F3", "F5"]
    page = _Page()
    page.feed(files[0].read_text(encoding="utf-8"))
    assert page.tags.count("math") == 2
    assert page.tags.count("svg") == 1
    assert "script" not in page.tags
    assert not [v for v in page.outside if "://" in v]


def test_the_command_goes_red(capsys, tmp_path):
    mistake = next(m for m in MISTAKES if m.claims == ("F3",))
    with planted(mistake):
        assert cli.main(["audit", "--only", "F3", "--json", str(tmp_path / "a.json")]) == 1
    out = capsys.readouterr().out
    assert "NOT: F3" in out
    running, summary = out.split("What does not hold:")
    line = next(line for line in running.splitlines() if line.endswith("FAILS"))
    assert line in summary
    assert "in units of eps·size" in summary
    assert max(map(len, out.splitlines())) <= run.LINE < 80
    assert not json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["holds"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "X"], "known are the letters N, P, F, O"),
        (["--only", "F3", "--json", "/nowhere/a.json"], "--json /nowhere/a.json: the folder /nowhere does not exist"),
        (["--only", "F3", "--report", "."], "--report .: is a folder"),
        (["--only", "F3", "--report", "a.html", "--json", "./a.html"], "--report and --json: are the same file"),
        (["--only", "D6", "--seed", "-1"], "seed: got -1; integers from 0 are allowed"),
    ],
)
def test_bad_arguments(capsys, arguments, message):
    assert cli.main(["audit", *arguments]) == 2
    seen = capsys.readouterr()
    assert message in seen.err
    assert not seen.out  # before the first witness


@pytest.mark.parametrize("package", ["sympy", "mpmath"])
def test_a_missing_extra_is_one_sentence_and_never_a_pass(monkeypatch, capsys, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == package else find(name, *a))
    assert cli.main(["audit", "--only", "N2"]) == 2
    assert capsys.readouterr().err.strip() == f"refprune: audit: {package} is not installed:  pip install -e '.[audit]'"
    with pytest.raises(InputError, match=package):
        run.require(package)


def test_a_picture_that_raises_leaves_the_report_whole(tmp_path, capsys):
    """When a formula of the code raises, its picture does so too."""

    def wrong(f):
        return functools.wraps(f)(lambda *a: 1 / 0)

    mistake = mutants.Mistake("raises", "formulas.hyper_prior:penalty", wrong, ("F3",))
    with planted(mistake):
        assert cli.main(["audit", "--only", "F3", "--report", str(tmp_path / "a.html")]) == 1
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "No picture: ZeroDivisionError: division by zero" in text
    assert "<span>ZeroDivisionError" in text
    assert text.rstrip().endswith("</html>")
    assert "ERROR" in capsys.readouterr().out


class _Text(HTMLParser):
    """What a reader sees of a formula; `words`: the upright ones."""

    BEFORE, AFTER = {"msqrt": "√("}, {"msqrt": ")"}

    def __init__(self):
        super().__init__()
        self.seen, self.words, self.open = "", [], []

    def handle_starttag(self, tag, attrs):
        self.seen += self.BEFORE.get(tag, "")
        self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag
        self.seen += self.AFTER.get(tag, "")

    def handle_data(self, data):
        self.seen += {"~": "\u0303"}.get(data, data)
        if self.open[-1][1].get("mathvariant") == "normal":
            self.words.append(data)


WORDS = re.findall(
    r"\w+",
    "argmin after Bern branch CKA clip cost error ever exp expm factor fl FLOPs HSIC kink KL Im in LeNet log logit MACs max"
    " mean min noise of option or out params path Philox purpose rounding seed SHA size softplus status step sup tiny"
    " tr vjp word",
)


@pytest.mark.parametrize("claim", catalogue(), ids=lambda c: c.number)
def test_a_formula_shows_all_that_it_says(claim):
    """Its text is the line of the catalogue without the marks; letters in a row are a word of the field, not a product."""
    text = _Text()
    text.feed(mathml(claim.formula))
    shown = claim.formula.replace("\\{", "\0").replace("\\}", "\1").replace("\\frac", "")
    shown = re.sub(r"[{}_^\s]", "", shown).replace("\0", "{").replace("\1", "}")
    assert text.seen == shown
    assert set(text.words) <= set(WORDS)


@pytest.mark.parametrize("formula", ["\\sqrt x", "{a", "a}", "√(a", "\\frac{a}", "a_"])
def test_a_formula_that_cannot_be_read_is_refused(formula):
    with pytest.raises(InputError, match="formula"):
        mathml(formula)


def test_formulas_become_mathml():
    assert mathml("√(a)") == mathml("x").replace("<mi>x</mi>", "<msqrt><mi>a</mi></msqrt>")
    assert mathml("a_1^2") == mathml("{a_1}^2")
    text = mathml("\\frac{a+1}{2} log x")
    assert "<mfrac><mrow><mi>a</mi><mo>+</mo><mn>1</mn></mrow><mn>2</mn></mfrac>" in text
    assert '<mi mathvariant="normal">log</mi>' in text
