"""The database's schema, step by step; forward only. `store.migrate` runs them."""
