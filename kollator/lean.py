"""What a front does not import when its settings have no use for it: OpenSSL, and Autobahn's WAMP.

Twisted takes TLS into its sockets when it finds it, and ``cryptography`` with it: a fifth of the memory of a front
that has neither TLS endpoints nor TLS links, because a proxy does that for it. To be called before anything imports
Twisted's sockets or Autobahn; when it comes too late it does nothing.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType

_PLAIN = re.compile(r"(haproxy:)?(tcp6?|unix|systemd):|ws://").match
"""Endpoint strings and links of which it is known that they use no TLS."""
_SOCKETS = "twisted.internet.tcp"


def may_use_tls(descriptions: Iterable[str]) -> bool:
    """Whether one of these endpoint strings or URLs may use TLS: what is not known may."""
    return not all(_PLAIN(description) for description in descriptions)


@contextmanager
def without_tls() -> Iterator[None]:
    """Within it Twisted finds no OpenSSL. Afterwards it can be imported again, but sockets do without."""
    if _SOCKETS in sys.modules or "OpenSSL" in sys.modules:
        yield
        return
    sys.modules["OpenSSL"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["OpenSSL"]


def without_wamp() -> None:
    """Has ``autobahn.twisted`` be a package without contents of its own, whose modules are imported as usual.

    Its own ``__init__`` imports all of WAMP, and with it ``cryptography``.
    """
    name = "autobahn.twisted"
    if name in sys.modules:
        return
    package = importlib.util.find_spec("autobahn")
    if package is None or not package.submodule_search_locations:
        return
    spec = importlib.util.find_spec(name)
    if spec is None:
        return
    bare = ModuleType(name)
    bare.__path__ = list(spec.submodule_search_locations or ())
    bare.__spec__ = spec
    sys.modules[name] = bare
