"""Networks and language models, and the policies made of them."""
