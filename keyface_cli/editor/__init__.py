"""The page on which a curve is drawn, and the strip of keyframes that is shown under it."""
