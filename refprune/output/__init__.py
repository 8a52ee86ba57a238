"""What leaves the program: files, progress on the screen, tables, figures.

For others:

- `files`: files that are complete or absent, folders that one process holds.
- `progress`: lines and bars on the screen.
- `tables`: tables as text and as HTML, pages.
- `figures`: pictures as SVG.
"""
