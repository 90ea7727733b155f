"""Videos to make: one or a whole table of them, resumed where they ended."""
