"""Routes by noun; each module has one `router`."""
