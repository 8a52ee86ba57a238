"""Fixtures of the tests of vectors."""

from vector_cases import gate, stored

__all__ = ["gate", "stored"]
