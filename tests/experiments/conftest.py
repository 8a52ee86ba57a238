"""Fixtures of the tests of layer pruning."""

from pruning_cases import whole

__all__ = ["whole"]
