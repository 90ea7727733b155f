"""The networks behind some metrics: where they come from, and how they are loaded."""
