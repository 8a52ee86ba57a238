"""The page of all reports: one file, verdict first, tables with header cells, pictures that fit a dark page."""

import re
from html.parser import HTMLParser

import pytest

from refprune.experiments import report
from refprune.output import figures, page
from refprune.output.page_style import COLOURS

#: Elements without an end tag.
VOID = {"meta", "br", "link", "img", "input", "hr"}

DECISION = {"gate": "section2", "unit": 0, "theta": 0.4, "objective_on": 1.5, "objective_off": 1.25, "on": False}


def training_run(**changes):
    """A training run's part of a summary."""
    left = {"macs": 0, "macs_at_start": 50, "parameters": 6, "parameters_at_start": 6}
    run = {"test_accuracy": 0.9, "test_loss": 0.3, "objective": 0.2, "sections": 1, "sections_at_start": 2, "units": {}}
    run |= {"units_at_start": {}, "parameters": 60, "parameters_at_start": 100, "macs_per_image": 50, "steps": 4}
    run |= {"macs_per_image_at_start": 100, "training_macs": 1e6, "training_macs_unpruned": 2e6, "seconds": 1.0}
    run |= {"first_step_seconds": 0.5, "decisions": [DECISION | {"rule": "compared"}], "rounded": 0.1, "removals": [{}]}
    return run | {"masked_compact_error": 0.5, "layers": {"dense<1>": left}} | changes


def summary(**changes):
    return {"name": "a & b", "seed": 0, "data": "digits", "runs": {"pruned": training_run(**changes)}}


METRICS = [
    *({"event": "step", "step": s, "theta": {"section1": 0.5 + s / 8, "section2": 0.5 - s / 8}} for s in range(4)),
    {"event": "removal", "step": 3, "removed": {"section2": 1}},
    {"event": "epoch", "step": 4, "macs": 1e6, "test_accuracy": 0.9, "macs_per_image": 50},
]


def whole(**changes):
    return report._page(summary(**changes), {"pruned": METRICS})


class Reader(HTMLParser):
    """Tags in order, nesting checked, targets of references, and the texts of headings."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.targets, self.ids, self.headings = [], [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.targets += [value for name, value in attrs if name in ("href", "src", "action", "data", "poster", "xlink:href")]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)


def names(reader):
    return [tag for tag, _ in reader.tags]


def test_one_file_that_asks_for_nothing():
    text = whole()
    reader = Reader(text)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(names(reader))
    assert all(target.startswith(("#", "data:")) for target in reader.targets)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert "@import" not in text
    assert "@font-face" not in text


def test_what_is_referred_to_is_there_once():
    reader = Reader(whole())
    assert len(reader.ids) == len(set(reader.ids))
    assert {target[1:] for target in reader.targets} <= set(reader.ids)


def test_language_title_and_one_main_heading():
    reader = Reader(whole())
    assert ("html", {"lang": "en"}) in reader.tags
    assert names(reader).count("title") == names(reader).count("h1") == names(reader).count("main") == 1
    assert reader.headings[0] == "a & b: digits, seed 0"
    assert "<title>a &amp; b: digits, seed 0</title>" in whole()


def test_the_verdict_stands_before_everything_else():
    text = whole()
    sentence = "Pruning kept 1 of 2 sections and 50 % of the MACs; the test accuracy is 90.00 %."
    assert text.index(sentence) < text.index("<dl") < text.index("<section")


def test_findings_stand_before_what_is_fine():
    right, wrong = Reader(whole()), Reader(whole(masked_compact_error=3.0))
    assert right.headings[1] == "Result"
    assert wrong.headings[1:3] == ["A removal was not exact", "Result"]
    classes = [attributes.get("class", "") for _, attributes in wrong.tags]
    assert classes.index("verdict bad") < classes.index("finding")
    assert "verdict good" in [attributes.get("class") for _, attributes in right.tags]


def test_every_table_has_a_caption_and_header_cells():
    reader = Reader(whole())
    starts = [i for i, (tag, _) in enumerate(reader.tags) if tag == "table"]
    assert len(starts) == 3
    for start, end in zip(starts, [*starts[1:], len(reader.tags)], strict=True):
        inside = reader.tags[start:end]
        assert "caption" in [tag for tag, _ in inside]
        assert {attributes["scope"] for tag, attributes in inside if tag == "th"} == {"col", "row"}


def test_every_picture_says_what_it_shows():
    pictures = [attributes for tag, attributes in Reader(whole()).tags if tag == "svg"]
    assert len(pictures) == 4
    assert all(p["role"] == "img" and p["aria-label"] for p in pictures)


def test_rows_are_explained_below():
    text = page.table([("", "a"), ("objective", "1")], "caption", explained={"objective": "What `J` is."})
    assert '<td role=cell colspan="2"><span>What <code>J</code> is.</span></td>' in text
    assert text.index("objective") < text.index("What")


def test_all_texts_are_escaped():
    bad = "<script>alert(1)</script>"
    made = page.page(bad, bad, "bad", page.section(bad, page.notes([bad]), page.table([(bad, bad), (bad, bad)], bad)))
    made += page.picture("<svg></svg>", bad, bad) + page.paragraph(bad)
    assert "<script" not in made
    assert "alert" in made


def test_columns_without_content_are_left_out_and_numbers_stand_right():
    text = page.table([("", "kept", "empty", "word"), ("x", "1.5 %", "", "holds"), ("y", "|z| 2", "–", "holds")], "caption")
    assert "empty" not in text
    assert '<td role=cell class=n data-label="kept">1.5 %</td><td role=cell data-label="word">holds</td>' in text


def test_an_empty_section_is_none():
    assert page.section("Nothing", page.notes([]), page.pictures("", ""), page.paragraph("")) == ""


# Pictures ---------------------------------------------------------------------------------------------------------------


def drawn():
    drawing, axes = figures.figure("the title", "x", "y")
    axes.plot([0, 1], [0, 1], label="rising")
    axes.plot([0, 1], [0, 1.01], label="rising too")
    return drawing, axes


def test_colours_of_a_picture_are_those_of_the_page():
    drawing, axes = drawn()
    axes.axhline(0.5, color="black")
    text = figures.svg(drawing)
    used = set(re.findall(r"var\(--([\w-]+)\)", text))
    assert {"c0", "c1"} <= used <= set(COLOURS)
    assert "currentColor" in text
    assert not re.findall(r"#[0-9a-f]{6}\b(?!-)", text)  # no colour that a dark page would not change
    assert "the title" not in text
    assert axes.get_title() == "the title"


def test_a_file_has_a_background_and_its_title():
    text = figures.svg_file(drawn()[0]).decode()
    assert "fill: #ffffff" in text
    assert "the title" in text


def test_letters_of_a_picture_can_be_read_on_a_telephone():
    """11 px where the picture is as wide as a telephone of 400 px less the margins of 16 px."""
    text = figures.svg(drawn()[0])
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', text)[1])
    sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", text)]
    assert sizes
    assert min(sizes) * 368 / width >= 11


def test_the_same_figure_gives_the_same_picture():
    assert figures.svg(drawn()[0]) == figures.svg(drawn()[0])


@pytest.mark.parametrize(
    ("heights", "moved"),
    [
        ([0.0, 1.0], [0.0, 1.0]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.9, 0.5, 0.5], [0.9, 0.45, 0.55]),
        ([0.3, 0.32, 0.34], [0.22, 0.32, 0.42]),
        ([], []),
    ],
)
def test_names_are_moved_apart_as_little_as_needed(heights, moved):
    assert figures.spread(heights, 0.1) == pytest.approx(moved)


def test_names_stand_beside_the_last_point_that_is_seen():
    drawing, axes = drawn()
    axes.plot([0, 0.5], [0, 0.5], label="short")
    axes.set_ylim(0.0, 1.0)
    figures.label_lines(axes)
    labels = {text.get_text(): text.get_position() for text in axes.texts}
    assert set(labels) == {"rising", "rising too", "short"}
    assert labels["rising"][0] > 1.0
    assert labels["short"][0] < 0.6
    assert figures.svg(drawing).count("rising") == 2


def test_names_beside_lines_are_short_and_stay_apart():
    assert figures.short_names(["pruned", "unpruned"]) == ["pruned", "unpruned"]
    one, other = figures.short_names(["/a/long/path/to/some/folder/one/run", "/a/long/path/to/some/folder/other/run"])
    assert max(len(one), len(other)) <= 24
    assert one != other
    alike = [f"/a/long/path/to/a/folder/{k}/of/a/very/long/name" for k in range(2)]
    assert len(set(figures.short_names(alike))) == 2
