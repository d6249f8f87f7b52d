"""Makes the test vectors, with `cryptography` and nothing of Fleetgate: so that the two can disagree."""
