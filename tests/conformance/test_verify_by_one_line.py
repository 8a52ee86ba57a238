"""The line that a user puts into his own test file."""

from formula_adapter import Formulas

from refprune.conformance.testing import conformance

test_formulas = conformance(Formulas)
