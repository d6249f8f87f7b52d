"""A level-2 device of Fleetgate, written from docs/protocol.md alone: says hello, stays, takes firmware."""

import json
import random
import secrets
import time

from device_firmware import Updates
from device_wire import Connection, Identity, Inbox, parse_options, restart


class Device:
    def __init__(self, args):
        self.args, self.identity, self.inbox = args, Identity(args), Inbox()
        self.updates = Updates(args, self.identity, self.inbox)
        self.on_offer = self.updates.offer
        self.connection = self.nonce = self.beat = None
        self.due, self.tries, self.challenges, self.with_chain = 0, 0, 0, True

    def run(self):
        while True:  # what comes in, or what is due next: to connect, to say hello, to report
            what, body = self.inbox.take(self.due)
            if what == "stop":
                return self.connection and self.connection.leave("offline")
            try:
                getattr(self, f"on_{what}")(json.loads(body))
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                print(f"{what} ignored: {error!r}", flush=True)

    def on_due(self, _):
        if self.connection is None:
            self.due, self.connection = None, Connection(self.args, self.identity, self.inbox)
        elif self.beat is None:
            self.hello()
        else:
            self.connection.send("presence", state="online")
            self.beat += self.every
            self.due = self.beat + random.uniform(0, self.every)  # a random point of the next interval

    def on_disconnected(self, _):
        self.connection = self.nonce = self.beat = None
        self.pause()

    def pause(self):
        self.tries = min(self.tries + 1, 7)
        self.due = time.monotonic() + random.uniform(0, min(600, 5 * 2**self.tries))

    def hello(self, **proof):
        self.nonce, self.beat = secrets.token_urlsafe(12), None
        self.challenges = self.challenges + 1 if proof else 0
        proof |= {} if proof else {"ts": time.time_ns() // 1_000_000}
        proof |= {"chain": self.identity.chain} if self.with_chain else {}
        self.connection.send("hello", nonce=self.nonce, **proof, **self.updates.for_hello())
        self.pause()

    def on_reply(self, reply):
        if self.nonce is None or reply["for"] not in (self.nonce, None):
            return
        print(reply["result"], reply["reason"] or "", flush=True)
        if reply["result"] == "challenge" and self.challenges < 3:
            self.with_chain |= reply["reason"] == "chain_required"
            self.hello(challenge=reply["challenge"])
        elif reply["result"] == "welcome":
            self.nonce, self.tries, self.with_chain = None, 0, False
            self.beat, self.every = time.monotonic(), max(10, reply["heartbeat_seconds"])
            self.due = self.beat + random.uniform(0, self.every)
            self.updates.welcome(reply)
        else:
            self.due += min(reply["retry_after_seconds"] or 0, 3600)

    def on_ended(self, end):
        if self.updates.ended(**end):
            restart(self.connection)  # a new start, as the new image
        if self.nonce or self.beat:
            self.hello()


Device(parse_options(__doc__)).run()
