"""``twistd kollator-front``: its options, and what twistd calls to make the service.

Twistd imports this before the reactor, so that a front can still leave out what its settings have no use for: nothing
here may import sockets, Autobahn, or a module that does.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from contextlib import nullcontext
from typing import TYPE_CHECKING

from kollator.lean import may_use_tls, without_tls, without_wamp
from kollator.settings import FrontOptions, SettingError, Settings

if TYPE_CHECKING:
    from kollator.twistdfront import UnderTwistd

Options = FrontOptions


def makeService(options: FrontOptions, environ: MutableMapping[str, str] | None = None) -> UnderTwistd:
    """What ``twistd kollator-front`` runs. Raises ``SystemExit`` with one line for a setting that cannot be used."""
    environ = os.environ if environ is None else environ
    try:
        settings = Settings.load(options, environ)
    except SettingError as error:
        raise SystemExit(str(error)) from None
    endpoints = (*settings.listen, *settings.peer_listen, *(peer.endpoint for peer in settings.peers))
    # A file of workers may name https: addresses at any time.
    tls = may_use_tls(endpoints) or settings.workers_file is not None
    without_wamp()
    with nullcontext() if tls else without_tls():
        from twisted.internet import reactor

        from kollator.twistdfront import build
    return build(settings, reactor, options, environ)
