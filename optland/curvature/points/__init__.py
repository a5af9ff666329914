"""What kind of point this is: verdicts, their evidence, and a search for critical points."""
