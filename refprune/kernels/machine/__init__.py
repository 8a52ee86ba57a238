"""What compiles kernels, keeps them on disk and runs them: Numba's machinery, threads, memory, vectors, register tiles."""
