"""Tests of what the long proofs and the pictures are made of."""
