"""Critical points: verdicts on a point with their evidence, and a search for such points."""
