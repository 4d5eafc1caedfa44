"""Published checkpoints <-> our encoder, one file per family."""
