"""Mathematics without a network: scalar functions, priors, the flattening hyper-prior, similarity of representations."""
