"""What people hand in: import paths, files of JSON lines, their own code that may raise."""
