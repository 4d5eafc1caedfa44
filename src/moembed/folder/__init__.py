"""Model folders: read, written, found on the hub."""
