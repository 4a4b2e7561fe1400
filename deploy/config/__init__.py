"""Recipes, overrides and what follows from them."""
