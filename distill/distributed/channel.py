"""JSON objects, a line each, between processes that watch each other; what arrives is never executed."""

import contextlib
import json
import socket
from collections.abc import Mapping
from typing import Any

LONGEST_LINE_BYTES = 64 * 1024


class ChannelClosed(Exception):
    """The other end is gone, or sent what is no message; nothing more will come."""


class Channel:
    """One end of a connection; neither sending nor receiving ever waits.

    Args:
        connection: A connected stream socket, which belongs to the channel from now on.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._arrived = b""

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends a message.

        Raises:
            ChannelClosed: The other end is gone, or has read nothing for long.
            ValueError: The message is longer than `LONGEST_LINE_BYTES`.
        """
        line = json.dumps(message).encode() + b"\n"
        if len(line) > LONGEST_LINE_BYTES:
            raise ValueError(f"a message may have {LONGEST_LINE_BYTES} bytes, received {len(line)}")
        try:
            self._connection.sendall(line)
        except OSError as error:
            raise ChannelClosed(str(error)) from error

    def receive(self) -> list[dict[str, Any]]:
        """Returns the messages that have arrived, in order; none where nothing has.

        Raises:
            ChannelClosed: See there. Messages that came before are returned first.
        """
        try:
            data = self._connection.recv(LONGEST_LINE_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            raise ChannelClosed(str(error)) from error
        if not data:
            raise ChannelClosed("the other end was closed")
        *lines, self._arrived = (self._arrived + data).split(b"\n")
        if max(map(len, [*lines, self._arrived])) > LONGEST_LINE_BYTES:
            raise ChannelClosed("a line is too long")
        return [_parsed(line) for line in lines]

    def close(self) -> None:
        """Closes this end."""
        with contextlib.suppress(OSError):
            self._connection.close()


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ChannelClosed(f"not JSON: {line[:100]!r}") from error
    if not isinstance(message, dict):
        raise ChannelClosed(f"not a JSON object: {line[:100]!r}")
    return message
