"""The command line. Imports what it needs when a command is called."""
