"""The line that a user puts into his own test file."""

from test_verify import Formulas

from refprune.conformance.testing import conformance

test_formulas = conformance(Formulas)
