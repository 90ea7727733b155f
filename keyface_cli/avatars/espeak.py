"""A small process that speaks with libespeak-ng and says when each phone begins.

The library is one global synthesiser whose sound depends on what it said before. So it lives in a
process of its own, light enough to be forked for each utterance: the same request always gives the
same sound. `Speaker` is the client; run as a module, this file is the server.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import struct
import subprocess
import sys
import threading
from typing import IO, Any, NamedTuple

_HEADER = struct.Struct("<II")  # bytes of JSON, bytes of sound that follow

_SYNCHRONOUS = 2  # speak in the calling thread, without a sound card
_PHONEME_EVENTS = 1
_EVENT_END, _EVENT_PHONEME = 0, 7
_RATE, _PITCH = 1, 3  # of espeak_SetParameter
_UTF8 = 1


class Utterance(NamedTuple):
    """What the synthesiser said: 16 bit mono sound, its rate, and each phone's first sample."""

    sound: bytes
    sample_rate: int
    phones: list[tuple[str, int]]  # espeak's own mnemonics


class SpeakerError(Exception):
    """The library is absent, does not start, or does not know the voice."""


class Speaker:
    """A server process and the lock that keeps threads from talking to it at once.

    Raises:
        SpeakerError: the library cannot be used.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._server = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            self._receive()  # a greeting or the reason why not
        except SpeakerError:
            self.close()
            raise

    @property
    def running(self) -> bool:
        """Whether the server still answers."""
        return self._server.poll() is None

    def close(self) -> None:
        """End the server."""
        for pipe in (self._server.stdin, self._server.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._server.wait()

    def speak(self, text: str, voice: str, words_per_minute: int, pitch: int) -> Utterance:
        """Speak a text.

        Args:
            text: any text.
            voice: an accent such as "en-us", with a timbre as in "en-us+f3".
            words_per_minute: 80 to 450; espeak's own is 175.
            pitch: 0 to 99 within the voice's range; espeak's own is 50.

        Raises:
            SpeakerError: there is no such voice, or the synthesiser crashed.
        """
        request = json.dumps([text, voice, words_per_minute, pitch]).encode()
        with self._lock:
            assert self._server.stdin is not None
            try:
                self._server.stdin.write(request + b"\n")
                self._server.stdin.flush()
            except BrokenPipeError as error:
                raise SpeakerError("the process that runs espeak-ng ended") from error
            reply, sound = self._receive()
        return Utterance(sound, reply["rate"], [(name, at) for name, at in reply["phones"]])

    def _receive(self) -> tuple[dict[str, Any], bytes]:
        assert self._server.stdout is not None
        header = self._server.stdout.read(_HEADER.size)
        if len(header) < _HEADER.size:
            raise SpeakerError("the process that runs espeak-ng ended")
        size, sound_size = _HEADER.unpack(header)
        reply = json.loads(self._server.stdout.read(size))
        sound = self._server.stdout.read(sound_size)
        if "error" in reply:
            raise SpeakerError(reply["error"])
        return reply, sound


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_ms", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Event))


class _Library:
    """The library, ready to speak once (a second utterance would depend on the first)."""

    def __init__(self) -> None:
        try:
            self.library = ctypes.CDLL("libespeak-ng.so.1")
        except OSError as error:
            raise SpeakerError("libespeak-ng is not installed") from error
        self.sound = bytearray()
        self.phones: list[tuple[str, int]] = []
        self.rate: int = self.library.espeak_Initialize(_SYNCHRONOUS, 0, None, _PHONEME_EVENTS)
        if self.rate <= 0:
            raise SpeakerError("libespeak-ng does not start; its data may be missing")
        self.callback = _Callback(self._collect)  # kept, for the library calls it later
        self.library.espeak_SetSynthCallback(self.callback)

    def _collect(self, samples: int | None, count: int, events: Any) -> int:
        if samples and count > 0:
            self.sound += ctypes.string_at(samples, 2 * count)
        i = 0
        while events[i].type != _EVENT_END:
            if events[i].type == _EVENT_PHONEME:
                name = events[i].id.string.decode("utf-8", "replace")
                self.phones.append((name, events[i].sample))
            i += 1
        return 0

    def speak(self, text: str, voice: str, words_per_minute: int, pitch: int) -> None:
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise SpeakerError(f"espeak-ng has no voice {voice!r}")
        self.library.espeak_SetParameter(_RATE, words_per_minute, 0)
        self.library.espeak_SetParameter(_PITCH, pitch, 0)
        data = text.encode()
        self.library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None)
        self.library.espeak_Synchronize()


def _send(stream: IO[bytes], reply: dict[str, Any], sound: bytes = b"") -> None:
    data = json.dumps(reply).encode()
    stream.write(_HEADER.pack(len(data), len(sound)) + data + sound)
    stream.flush()


def serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """Greet, then answer one JSON request a line, each in a fork, until the input ends."""
    try:
        library = _Library()
    except SpeakerError as error:
        _send(replies, {"error": str(error)})
        return
    _send(replies, {"rate": library.rate})
    for line in requests:
        child = os.fork()
        if child == 0:
            try:
                library.speak(*json.loads(line))
                answer = {"rate": library.rate, "phones": library.phones}
                _send(replies, answer, bytes(library.sound))
            except SpeakerError as error:
                _send(replies, {"error": str(error)})
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            _send(replies, {"error": "espeak-ng crashed"})


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
