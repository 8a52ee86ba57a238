"""Known mistakes made inside the correct PyTorch implementation, one at a time, each in code that a user could have written.

None is planted in refprune: `refprune verify` must find each in PyTorch, and say which it is from the numbers alone.
"""
