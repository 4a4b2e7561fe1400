"""Preferences as records, lines, files and a log; clips for raters; how far raters agree."""
