"""Before and beside a run: does it fit, is the machine fit, how long will it take, where does it stand."""
