"""Algorithms that learn from env steps. A file that names its class in ALGORITHM is one."""
