"""Checks of the exercises, one module a set; they know the usual mistakes and name them."""
