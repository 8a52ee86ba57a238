"""Fixtures of the tests of commands."""

from command_line import command, tiny_data

__all__ = ["command", "tiny_data"]
