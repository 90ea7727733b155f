"""The procedural talking head: rig, renderer, voices and the performance that joins them."""
