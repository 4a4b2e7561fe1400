"""What a run will need of memory and disk, what there is, and how the one goes into the other. Pure arithmetic, but for
reading the machine."""
