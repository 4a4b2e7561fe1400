"""Runs looked at side by side: a table of them, and a comparison over seeds. Reads run directories, and imports neither
torch nor Ray."""
