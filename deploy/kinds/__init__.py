"""The kinds of run there are, and what each is made of."""
