"""Damaged files by the thousand for every reader of refprune: `python -m validation.fuzz`."""
