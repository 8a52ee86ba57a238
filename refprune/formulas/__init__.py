"""Mathematics without a network: scalar functions, priors, the flattening hyper-prior, similarity.

For others:

- `scalar`: logarithms of probabilities and the Bernoulli divergence, exact at their ends.
- `priors`: spike and slab, Student-t, Laplace and horseshoe priors of weights.
- `hyper_prior`: the flattening hyper-prior and the penalty that it leaves on θ.
- `cka`: HSIC and CKA of two arrays of features, whole or in batches.
"""
