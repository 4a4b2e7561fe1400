"""Actors outside Ray, as both sides see them: the protocol, its settings, and the Python actor that speaks it."""
