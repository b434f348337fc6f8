"""Red Heart: train a 730-million-parameter model, all parameters, on an 8 GB card."""

__version__ = "0.2.0"
