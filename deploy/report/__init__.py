"""What a run shows and writes down: screen, lines, report."""
