"""What `benchmarks/prove_chaos.py` is made of: rounds of kills, stops and faults, and a reading of the books."""
