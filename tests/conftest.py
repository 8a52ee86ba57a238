"""Hypothesis profiles: dev (default), ci, campaign; chosen by the environment variable HYPOTHESIS_PROFILE."""

import os

import pytest
from hypothesis import HealthCheck, settings

COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large], "print_blob": True}

settings.register_profile("dev", max_examples=20, **COMMON)
settings.register_profile("ci", max_examples=30, derandomize=True, **COMMON)
settings.register_profile("campaign", max_examples=2000, **COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

pytest.register_assert_rewrite("checkers", "layer_checks", "network_comparison", "small_experiments", "small_training")
