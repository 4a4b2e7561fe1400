"""Runs on a file of preferences: direct methods, and reward models."""
