"""What operators do: one typed command per verb, each with its check, its change and its audit row."""
