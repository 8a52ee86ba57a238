"""Comparing networks: every tensor that is judged, by name, and its tolerance (E2)."""

import numpy as np
from tolerance import assert_close

from refprune.rounding.tolerance import network_tolerance
from refprune.spec.layers import Section


def tensors(loss, gates, *, run_closed=True):
    """Loss, output and all gradients of the implementation; the evaluation they came from.

    The backward pass of a training step, without the input's gradient, must give the same bits.
    """
    evaluation = loss.evaluate(gates, run_closed=run_closed)
    gradients, training = (loss.gradients(evaluation, input_gradient=wanted) for wanted in (True, False))
    assert_close("gates", training.gates, gradients.gates, 0.0)
    for name, gradient in training.params.items():
        assert_close(f"{name} without the input's gradient", gradient, gradients.params[name], 0.0, network=loss.network)
    named = {"loss": evaluation.loss, "output": evaluation.tape.output, "gates": gradients.gates, "input": gradients.input}
    return named | gradients.params, evaluation


def bounds(loss, gates, *, unit=2.0**-53, **options):
    """How far a correct implementation may be from it, under the same names (E2)."""
    t = network_tolerance(loss, gates, unit=unit, run_closed=True, **options)
    return {"loss": t.loss, "output": t.output, "gates": t.gates, "input": t.input} | t.params


def assert_tensors(got, want, tolerances, **context):
    """Every tensor of `want` is there and within its tolerance."""
    __tracebackhide__ = True
    for name, wanted in want.items():
        assert_close(name, np.asarray(got[name]), np.asarray(wanted), tolerances[name], **context)


def safe(network, keep):
    """No plain layer may lose all its units: its first one stays."""
    keep = keep.copy()
    for group in network.gate_groups:
        if not isinstance(network.layers[group.position], Section) and not keep[group.slice].any():
            keep[group.start] = True
    return keep


def sections(network):
    return [layer for layer in network.layers if isinstance(layer, Section)]


def closed_sections(case):
    slices = case.network.gate_slices
    return [s for s in sections(case.network) if s.gate and case.gates[slices[s.name]][0] == 0]


def part_names(layers):
    return {part.name for part in layers}
