"""Stability of an optimizer: its largest stable sharpness, and how far it is from it."""
