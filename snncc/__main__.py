"""Entry point of ``python -m snncc``."""

from snncc.cli import main

main()
