"""Hypothesis strategies, public, for whoever tests an implementation of his own: valid by construction, extremes included.

`layers` draws calls of single layers, `networks` whole networks with all that is needed to run them.
"""
