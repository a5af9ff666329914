"""The folder of a run: settings, checkpoints, interruption, resume, weights and the summary."""
