"""Scoring and packing kernels. `reference` is the NumPy truth that every faster engine is tested against."""
