"""Gymnasium environments: named, built, stepped in groups, their answers looked at, their state captured."""
