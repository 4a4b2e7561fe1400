"""Selection: several completions of a prompt, scored, and of those the ones that are kept, to be learnt from."""
