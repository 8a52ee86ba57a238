"""The layers' kernels for the CPU. Contracts as in `refprune.oracle`."""
