"""`python -m raycache.cli` is `raycache`."""

from raycache.cli import main

main()
