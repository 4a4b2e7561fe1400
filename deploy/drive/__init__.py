"""Sees a run through, from claiming its directory to its report."""
