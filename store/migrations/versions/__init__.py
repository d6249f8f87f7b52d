"""One module a step, numbered; each is written once and never changed after it was published."""
