"""Triton kernels and thin launchers; no autograd, no validation. Installed as ``dgm_fast.kernels``."""
