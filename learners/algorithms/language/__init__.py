"""Algorithms that learn from sampled tokens. A file that names its class in ALGORITHM is one."""
