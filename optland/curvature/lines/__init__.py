"""Curvature and largest steps along one direction."""
