"""The encoder and everything it is made of; `embedder` is the door."""
