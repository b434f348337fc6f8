"""`python -m redheart.cli`."""

from redheart.cli import main

main()
