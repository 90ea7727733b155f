"""The two stages of the method: the plan in integers, keyframes, and the frames between them."""
