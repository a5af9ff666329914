"""Gradient noise: from parts of a batch, from single samples, and weighed by curvature."""
