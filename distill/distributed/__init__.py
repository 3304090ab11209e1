"""Training on several ranks: the same mathematics at any number of them."""
