"""Networks, the policies made of them, and parameters as one flat array. Language models are in language."""
