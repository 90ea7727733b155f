"""What comes in: audio, portraits and videos, read from any file that ffmpeg reads."""
