"""Pages for people: their pieces, plots and words, and a room for each kind of report."""
