"""Which part of a response is its answer, and which number or formula it is."""
