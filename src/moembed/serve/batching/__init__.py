"""Requests of all clients as batches of one model: what may wait, who is next, the thread that computes."""
