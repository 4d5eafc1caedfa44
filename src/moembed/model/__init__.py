"""The encoder and everything it is made of."""
