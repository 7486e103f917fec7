"""Entry point of ``python -m snncc``."""

from snncc.cli.commands import main

main()
