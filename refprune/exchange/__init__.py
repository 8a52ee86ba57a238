"""Trained networks in and out of files."""
