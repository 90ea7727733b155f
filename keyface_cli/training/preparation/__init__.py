"""Real talking videos to training shards: read, follow the face, check, encode."""
