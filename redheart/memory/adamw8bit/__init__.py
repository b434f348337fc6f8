"""Where the optimizer was before `redheart.optim`."""
