"""`python -m gateway` is `fleetgate`."""

from gateway.cli.main import main

main()
