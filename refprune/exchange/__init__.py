"""Trained networks in and out of files.

For others:

- `trained`: the record of a trained network.
- `load`: a checkpoint or a file of weights, as a trained network.
- `export`: a trained network as .npz, ONNX or PyTorch file, compared with the oracle.
- `spec_of_file`: the network that a name, a JSON file or the arrays describe.
"""
