"""One file a strategy, named after it, with a `STRATEGY` in it; `redheart/train/strategy.py` finds them all."""
