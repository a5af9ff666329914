"""Thin layers for other people's trainers, over ``perturb()``, ``passes()``, ``step()`` and the pilot's host.

Each module is imported by its own name (``optland.integrations.accelerate``) and needs its library only when it is
used; ``import optland`` loads none of them.
"""
