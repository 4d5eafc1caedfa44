"""Training a student to give the vectors of a teacher."""
