"""docs/config.md and `refprune zoo --keys`: made from the keys themselves."""

from pathlib import Path

import pytest

from refprune.cli.main import main
from refprune.training import config, config_page
from refprune.training.config import Config

PAGE = Path(__file__).parents[2] / "docs" / "config.md"


def test_the_page_is_the_one_that_the_keys_make():
    """Catches a key that was changed without `refprune zoo --keys --markdown > docs/config.md`."""
    assert PAGE.read_text(encoding="utf-8") == config_page.markdown()


@pytest.mark.parametrize(("options", "form"), [([], "{} = "), (["--markdown"], "| `{}` | `")])
def test_the_command_shows_every_key(options, form, capsys):
    assert main(["zoo", "--keys", *options]) == 0
    shown = capsys.readouterr().out
    names = [name for name, _, _ in config.keys(Config())]
    assert [name for name in names if f"\n{form.format(name)}" not in shown] == []
    assert len(names) > 40


def test_every_meaning_is_made_of_sentences():
    """Catches a key without meaning, and one whose text would break its row of the table."""
    for name, _, field in config.keys(Config()):
        meaning = field.metadata["meaning"]
        assert meaning.endswith((".", ")", "]")), name
        assert not {"|", "\n"} & set(meaning), name


@pytest.mark.parametrize("options", [["--markdown"], ["--keys", "lenet-5"]])
def test_options_that_do_not_go_together_are_refused(options, capsys):
    assert main(["zoo", *options]) == 2
    assert capsys.readouterr().err.startswith("refprune: zoo --")


def test_what_is_allowed_is_told_in_words():
    page = config_page.markdown()
    for row in (
        "| `optimiser.momentum` | `0.9` | number in [0, 1) |",
        "| `gates.threshold` | `0.0` | number in [0, 0.5] |",
        "| `training.epochs` | `10` | integer ≥ 1 |",
        "| `unpruned` | `true` | true, false |",
        "| `gates.protect` | `[]` | list of names |",
        '| `training.backend` | `"numba"` | oracle, numba |',
    ):
        assert row in page
