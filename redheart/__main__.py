"""`python -m redheart`."""

from redheart.cli import main

main()
