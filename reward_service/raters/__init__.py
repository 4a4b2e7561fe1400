"""Raters that are programs."""
