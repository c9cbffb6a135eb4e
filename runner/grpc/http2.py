"""The HTTP/2 side of a gRPC connection: h2, with limits that the other side is told."""

from __future__ import annotations

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame

STREAM_WINDOW = 1 << 20
CONNECTION_WINDOW = 16 << 20
"""Bytes that a client may send ahead of its handlers, on one call and on all: stalled calls leave room for others."""
MAX_HEADER_BYTES = 16_384
MAX_CLOSED_STREAMS = 1000
"""Ended calls that h2 remembers for each connection, 130 bytes each; its own limit comes to 8 MB."""

H2_CONFIG = H2Configuration(
    client_side=False,
    # Bytes that are not ASCII must not raise in the midst of parsing; a token with such is refused as any other one.
    header_encoding="latin-1",
    validate_inbound_headers=False,
    validate_outbound_headers=False,
    normalize_inbound_headers=False,
    normalize_outbound_headers=False,
)
GOAWAY = GoAwayFrame(0, last_stream_id=2**31 - 1).serialize()
"""Asks a client to make no more calls on this connection; those that run go on. After h2's own nothing can be sent."""


class _Http2(H2Connection):
    MAX_CLOSED_STREAMS = MAX_CLOSED_STREAMS
    DEFAULT_MAX_HEADER_LIST_SIZE = MAX_HEADER_BYTES


def open_http2(max_streams: int) -> H2Connection:
    """Return the state of a connection whose client may have `max_streams` calls at a time; its greeting is ready."""
    http = _Http2(config=H2_CONFIG)
    values = {
        SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
        SettingCodes.MAX_CONCURRENT_STREAMS: max_streams,
        SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEADER_BYTES,
    }
    http.local_settings = Settings(client=False, initial_values=values)
    http.initiate_connection()
    http.increment_flow_control_window(CONNECTION_WINDOW - http.inbound_flow_control_window)
    return http
