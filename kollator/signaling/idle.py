"""What Autobahn keeps for each connection, by name, and what of it an open, idle connection needs: nothing of its own.

``tests.test_fast_assumptions`` compares these names with what Autobahn does.
"""

from __future__ import annotations

from typing import Any

from autobahn.twisted.websocket import WebSocketServerProtocol
from autobahn.websocket.protocol import TrafficStats

HANDSHAKE = (
    "peer",
    "http_headers",
    "http_request_data",
    "http_request_host",
    "http_request_params",
    "http_request_path",
    "http_request_uri",
    "http_response_data",
    "http_status_line",
    "openHandshakeTimeoutCall",
    "websocket_extensions",
    "websocket_extensions_in_use",
    "websocket_origin",
    "websocket_protocol_in_use",
    "websocket_protocols",
    "websocket_version",
    "_wskey",
)
"""What Autobahn keeps of a handshake, and nobody asks for later."""
PARSER = (
    "_isMessageCompressed",
    "control_frame_data",
    "current_frame",
    "current_frame_masker",
    "inside_message",
    "message_data_total_length",
    "text",
    "utf8validateIncomingCurrentMessage",
    "utf8validateLast",
    "utf8validator",
)
"""What Autobahn's parser keeps, of no use between two messages."""
DEFAULTS: dict[str, Any] = {
    # What Autobahn sets for each connection in __init__ and _connectionMade.
    "trackedTimings": None,
    "trafficStats": TrafficStats(),  # nobody reads them: one for all
    "send_state": WebSocketServerProtocol.SEND_STATE_GROUND,
    "send_queue": (),
    "triggered": False,
    "utf8validator": None,
    "wasMaxFramePayloadSizeExceeded": False,
    "wasMaxMessagePayloadSizeExceeded": False,
    "closedByMe": False,
    "failedByMe": False,
    "droppedByMe": False,
    "wasClean": False,
    "wasNotCleanReason": None,
    "wasServerConnectionDropTimeout": False,
    "wasOpenHandshakeTimeout": False,
    "wasCloseHandshakeTimeout": False,
    "wasServingFlashSocketPolicyFile": False,
    "localCloseCode": None,
    "localCloseReason": None,
    "remoteCloseCode": None,
    "remoteCloseReason": None,
    "openHandshakeTimeoutCall": None,
    "closeHandshakeTimeoutCall": None,
    "autoPingTimeoutCall": None,
    "autoPingPending": None,
    "autoPingPendingCall": None,
    "autoPingPendingSeq": 0,
    "autoPingPendingSent": None,
    "_perMessageCompress": None,
    "_transport_details": None,
    # And what it sets in a handshake and in its parser.
    "websocket_version": 13,
    "inside_message": False,
    "current_frame": None,
}
"""The attributes of an open, idle connection of Autobahn's, for the class."""
