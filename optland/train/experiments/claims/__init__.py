"""Claims about loss landscapes, each decided by an experiment under a rule that was written before the run."""
