"""What a result says of its origin: a mark that machines read, and signed content credentials."""
