"""Measurements on drawn avatars, whose true faces are known."""
