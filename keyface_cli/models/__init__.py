"""The networks: video UNet, latent codec and the audio encoders.

Shapes are written with these letters throughout: B clips, T frames of a clip (14), C channels,
H W pixels, h w latent positions, S audio samples at 16 kHz, N video frames of the audio at 25 fps,
A width of raw audio features, D width of the projected audio context, E width of the embedding
that is added in every residual block, K condition latents.
"""
