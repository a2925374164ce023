"""Kernels: plans (schemes made ready to run) and the routines that run them, naive oracles beside the fast forms."""
