"""Tabular reinforcement learning over numpy: exact solutions, prediction, control and bandits, as the book has them."""
