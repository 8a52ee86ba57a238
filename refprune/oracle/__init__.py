"""The oracle: every function of a layer in NumPy, its vector-Jacobian product below it.

For others:

- `layers`: (f, f_vjp) of each layer and loss.
- `fused`: dense and convolution with scale, shift and ReLU, for inference.
- `momentum`: one step of momentum SGD.
- `crop_flip`: random crops and mirrored images.
"""
