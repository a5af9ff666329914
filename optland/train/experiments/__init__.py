"""Runs against each other: a method and its tuned base over seeds, and the table of it."""
