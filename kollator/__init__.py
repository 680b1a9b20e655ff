"""Kollator Front: the ticket booth of a peer-to-peer file-sharing network over WebRTC."""

__version__ = "0.1.0"
