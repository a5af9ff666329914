"""Symmetric matrices known by their products: Hessian, Gauss-Newton, Fisher, and operators made from these."""
