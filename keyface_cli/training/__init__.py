"""Training of every network of a checkpoint folder; inference never imports this package."""
