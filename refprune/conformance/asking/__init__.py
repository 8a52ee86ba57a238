"""Asking an implementation: its methods, calls in a process of their own, scripts that ask again."""
