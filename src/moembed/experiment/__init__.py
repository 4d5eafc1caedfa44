"""A grid of recipes, trained with several seeds, evaluated alike and put into one table."""
