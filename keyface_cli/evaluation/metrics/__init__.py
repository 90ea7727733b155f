"""One metric a module: what it measures, and of whom."""
