"""What `benchmarks/prove_soak.py` is made of: what it looks at, whether that grows, and a picture of it."""
