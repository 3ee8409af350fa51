"""What a guest prints, as text that cannot steer the terminal which shows it."""

from __future__ import annotations

import codecs

#: what terminals obey: C0 but tab and line feed, DEL, and C1 (ESC, CSI and all that), also as a raw byte,
#: which surrogateescape keeps at U+DC80 and up
_CONTROLS = [*range(9), *range(11, 32), *range(0x7F, 0xA0), *range(0xDC80, 0xDCA0)]
#: what makes text look like another: marks of direction (UAX #9), and separators that are line ends to some
_MARKS = [0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)]
_DOTS = dict.fromkeys([*_CONTROLS, *_MARKS], ".")


class SafeText:
    """UTF-8 in pieces; CR LF becomes LF, what is in the tables a dot, and what is no UTF-8 stays as it is."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._held = ""

    def feed(self, data: bytes) -> bytes:
        """``data`` made safe, but for what may be half of a character or of a line's end: that comes with the
        next piece."""
        text = self._held + self._decoder.decode(data)
        self._held = "\r" if text.endswith("\r") else ""
        return _made_safe(text.removesuffix("\r"))

    def finish(self) -> bytes:
        """Nothing more comes: what is left."""
        text, self._held = self._held + self._decoder.decode(b"", final=True), ""
        return _made_safe(text)


def _made_safe(text: str) -> bytes:
    return text.replace("\r\n", "\n").translate(_DOTS).encode("utf-8", "surrogateescape")
