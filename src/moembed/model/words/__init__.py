"""Tables of words that take less memory than one row of floats per word."""
