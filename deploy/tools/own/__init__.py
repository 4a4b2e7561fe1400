"""What users write themselves: files to begin with (`rollcall new`), and a look at them before a run."""
