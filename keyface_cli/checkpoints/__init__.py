"""Model folders: their files, and how published ones are fetched, converted and checked."""
