"""`python -m npbench`."""

from npbench.cli import main

main()
