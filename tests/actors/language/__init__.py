"""Tests of the language actors, on real vLLM engines."""
