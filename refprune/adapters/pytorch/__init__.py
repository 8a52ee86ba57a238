"""The whole method in PyTorch, to start an adapter from. PyTorch is imported by the files inside, on use."""
