"""A sweep's results: mean and spread over seeds as a table, and pictures (extra `experiments`) in one HTML file."""

from __future__ import annotations

import html
from pathlib import Path

from ..output import figures, tables
from ..output.files import write_atomically
from .sweep_pictures import pictures
from .sweep_tables import read_results, rows, size_rows


def write_html(directory: Path) -> Path | None:
    """report.html and its pictures as .svg files beside it. None where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    page = read_results(directory)
    drawn = {name: figures.svg(figure) for name, figure in pictures(page, directory).items()}
    for name, content in drawn.items():
        write_atomically(directory / f"{name}.svg", content.encode())
    failed = [f"failed: {f['label']}, seed {f['seed']}: {f['problem']}" for f in page["failed"]]
    notes = f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in failed)}</ul>" if failed else ""
    body = f"<h2>Accuracy against size</h2>{tables.html_table(size_rows(page))}{notes}{''.join(drawn.values())}"
    content = tables.page(f"{page['name']}, from {page['experiment']}", rows(page), body)
    path = directory / "report.html"
    write_atomically(path, content.encode())
    return path
