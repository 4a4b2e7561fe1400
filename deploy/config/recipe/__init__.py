"""What a recipe may say: the settings of every run (root_config), of each kind of run, and of sections that several
kinds have."""
