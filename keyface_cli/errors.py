"""The errors that a user can cause, each one sentence with a hint of what to do next."""


class KeyFaceError(Exception):
    """Something the user can mend: shown as one line, exit code 1.

    Args:
        message: what is wrong and where (a path, an option, a line), without a final full stop.
        hint: what to do next, or None where the message already says it.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(KeyFaceError):
    """A configuration key or value that no model has."""


class WeightsError(KeyFaceError):
    """A checkpoint folder or one of its files is missing, truncated or of another shape."""


class AudioError(KeyFaceError):
    """An audio file that cannot be read or holds less than one video frame."""


class FeaturesError(KeyFaceError):
    """A file of audio features that cannot be used, or not with this recording and model."""


class PortraitError(KeyFaceError):
    """A portrait that cannot be read as a picture."""


class EmotionError(KeyFaceError):
    """An emotion name or curve that cannot be used."""


class VideoError(KeyFaceError):
    """ffmpeg is absent or failed, or the result cannot be written."""


class JobError(KeyFaceError):
    """A job folder that belongs to something else, is in use or cannot be written; a bad job."""


class DeviceError(KeyFaceError):
    """A device or number format that this machine does not offer, or too little memory."""


class PageError(KeyFaceError):
    """A page that cannot be served to a browser."""


class CredentialsError(KeyFaceError):
    """A certificate, key or list of trust that cannot be used; a result that cannot be signed."""
