"""Runs whose learner is a table: control from one episode after the other, and bandits. One process."""
