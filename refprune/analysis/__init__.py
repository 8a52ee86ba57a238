"""Questions to a trained network: similarity of layers, scores of sections, robustness."""
