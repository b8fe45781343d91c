"""A Pusher-protocol server for development and tests: the HTTP API, WebSockets (protocol 7) and webhooks of one app.

What a program publishes with a Pusher server library and a page receives with pusher-js works here without an account
and without a network: public, private, encrypted and presence channels, client events, sign-in, signatures, sizes and
times checked as the service does. `GET /emulator/messages` tells what was published; faults are ordered by name.
It keeps nothing, knows one app, and speaks neither TLS nor the HTTP fallbacks of old browsers.

    async with running() as pusher:
        os.environ.update(pusher.variables)
"""

from deltafan.devserver.pusher.faults import FAULTS, Fault, FaultRule, Faults, parse_fault
from deltafan.devserver.pusher.journal import Message, RequestRecord
from deltafan.devserver.pusher.server import PusherEmulator, running
from deltafan.devserver.pusher.settings import App

__all__ = [
    "FAULTS",
    "App",
    "Fault",
    "FaultRule",
    "Faults",
    "Message",
    "PusherEmulator",
    "RequestRecord",
    "parse_fault",
    "running",
]
