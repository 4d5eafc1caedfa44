"""Training: one loop, and the parts it calls in a visible order."""
