"""Questions to a trained network: similarity of layers, scores of sections, robustness.

For others:

- `layer_similarity`: CKA between all layers.
- `scores`: criteria by which sections are ranked.
- `candidates`: the sections that can go.
- `stability`: how far scores scatter over samples.
- `robustness`: accuracy under FGSM and corrupted images.
"""
