"""Recipes, overrides and what follows from them: read, placed, checked."""
