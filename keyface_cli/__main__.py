"""`python -m keyface_cli` is `keyface`."""

from keyface_cli.app import main

main()
