"""The whole spectrum from random probes: trace, diagonal, density and the summary in a few numbers."""
