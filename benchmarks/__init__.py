"""The long proofs, each run as `python -m benchmarks.NAME`; `make prove` runs all of them."""
