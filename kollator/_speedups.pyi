"""What is done to the bytes of every relayed message, compiled (``_speedups.c``)."""

def next_text(data: bytes, at: int, /) -> bytes | None:
    """As ``kollator.signaling.frames.next_text_in_python``."""

def text_frame(payload: bytes, /) -> bytes:
    """As ``kollator.signaling.frames.text_frame_in_python``."""

def receive(descriptor: int, most: int, /) -> bytes:
    """As ``os.read``, of a socket that does not block, and 16 KiB at most."""

def send(descriptor: int, data: bytes, /) -> int:
    """As ``os.write``, to a socket that does not block."""

def usual_candidate(text: str, /) -> bool:
    """As ``kollator.guard.descriptions.usual_candidate_in_python``, which may say True to others."""

def usual_description(text: str, /) -> bool:
    """As ``kollator.guard.descriptions.usual_description_in_python``, which may say True to others."""
