"""The command line, a file a command.

For others:

- `main`: `refprune COMMAND`; returns the exit code.
"""
