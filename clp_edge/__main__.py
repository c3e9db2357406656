"""`python -m clp_edge` is `clp-edge`."""

from clp_edge.cli import main

main()
