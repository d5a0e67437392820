"""`python -m raycache` is `raycache`."""

from raycache.cli import main

main()
