"""Compose a model with an ordered list of optimization passes; every number is measured on the file that ships."""

__version__ = "0.1.0"
