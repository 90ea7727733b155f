"""A one-file page for the person at this machine."""
