"""Compare a method with its tuned base over seeds, and make the table of it."""
