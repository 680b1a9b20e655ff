"""What ``twistd`` finds: the front, and the reference worker that runs as a process of its own."""

from twisted.application.service import ServiceMaker

front = ServiceMaker(
    "Kollator front server",
    "kollator.front",
    "A Kollator front: bootstrap, worker assignment and WebRTC signaling.",
    "kollator-front",
)

worker = ServiceMaker(
    "Kollator reference worker",
    "kollator.webrtc.worker",
    "A Kollator worker that serves a folder over WebRTC data channels.",
    "kollator-worker",
)
