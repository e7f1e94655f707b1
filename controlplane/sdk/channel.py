"""One coalescing stream to a region, kept alive across whatever happens to its nodes.

A client has one `Session` stream, to the leader when it is known and to any node otherwise. Calls made in the same
turn of the event loop leave in one message; a reply resolves a future. No task, timer or lock is made per call.

1. A call keeps its bytes, and with them its request id, through every attempt. Asking twice is safe.
2. When a stream breaks, what it left unanswered is sent again at once, in order, on the next one. When an *answer* says
   Unavailable or OutcomeUnknown, the call rests for a random time that doubles on average, then is sent again. Every
   other answer is final.
3. A write whose attempt got no definite answer is *in doubt* from then on. In doubt, only an answer that the region
   keeps (a reply or a refusal) is final: Denied or Contended speak of the last attempt alone. At its deadline a call in
   doubt ends as OutcomeUnknown, any other as Unavailable.
4. A stream that has been silent although answers are due is probed; if it stays silent it is given up. Patience grows
   with how slow answers have been, so that a busy node is not left by everyone at once. A turn of the loop that came
   late proves nothing about the server, so no stream is judged by it.
5. To find a node, several are dialled a moment apart and the first to speak wins. One that just failed is avoided for
   a moment. When the region says that another node leads, the client moves there; what is in flight stays until it is
   answered or the old stream has had its time. A node that knows no leader may be cut off from those that do: after a
   moment the client looks for one of them, and takes everything along.
6. A region's revision never goes back, unless it was started over, without its data or with older ones. An answer that
   tells of a state younger than the newest revision seen, and has less, proves it: then nothing that was seen counts,
   watches end as Compacted, and whoever keeps more is told (`on_started_over`).
7. Everything is bounded: calls waiting, calls in flight, bytes of a message, every wait.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

from controlplane import status
from controlplane.errors import Compacted, Contended, ControlPlaneError, Denied, Invalid, OutcomeUnknown, Unavailable
from controlplane.limits import CALL_TIMEOUT_MAX_S, REQUEST_BYTES_MAX, WATCHES_PER_SESSION_MAX
from controlplane.sdk import clock as clocks
from controlplane.sdk.clock import Clock
from controlplane.sdk.session import WAITING_MAX, Call, Dialer, Session, Stream, Tls, checked, expire
from controlplane.v1 import api_pb2 as api

STARTED_OVER_S: Final = 1.0
"""How much younger than the newest revision seen a state with less must be: what clocks and rounding may amount to."""
SINCE_TOO_OLD: Final = "SINCE_TOO_OLD"
"""Reason of the Unavailable that says: certainly not applied, ask again with the `since` of now."""
_SINCE_IN_FUTURE: Final = "SINCE_IN_FUTURE"
"""Reason of the Unavailable of a node that has less than the caller says that it has seen."""
_NOT_KEPT: Final = frozenset({"OUTCOME_FORGOTTEN", "EPOCH_CHANGED"})
"""Reasons of OutcomeUnknown that asking again cannot cure."""

TICK_S: Final = 0.025
"""How exactly deadlines and silence are noticed."""
LATE_S: Final = 0.04
SILENT_S: Final = 0.08
"""Silence after which a stream is probed, and again after which it is given up. Doubled each time that happens."""
SILENT_MAX_S: Final = 2.0
BYTES_PER_S: Final = 1 << 20
"""How fast a link is taken to be at least: large requests on their way are given time accordingly."""
SLOWER_THAN_EVER: Final = 1.5
"""Silence shorter than so many times the slowest of recent answers says that the node is busy, not that it is gone."""
SLOWEST_FADES: Final = 0.98
"""How much of the slowest answer is remembered with each message."""
TRUSTED_AFTER_S: Final = 1.0
"""A stream that held so long restores the usual patience."""
DIAL_APART_S: Final = 0.02
AVOID_S: Final = 0.5
DRAIN_S: Final = 1.0
REST_S: Final = 0.01
REST_MAX_S: Final = 0.5
SEEK_MAX_S: Final = 1.0
LEADERLESS_S: Final = 0.5
"""How long a node may know no leader before another one is tried."""
LEADERLESS_MAX_S: Final = 4.0
"""The pause between such tries doubles up to here: while a whole region has no leader, nobody knows one."""


class Channel:
    """The way to one region. Belongs to one event loop; `open` before, `close` after."""

    def __init__(
        self,
        addresses: Sequence[str],
        tls: Tls | None,
        *,
        server_name: str | None = None,
        follow_leader: bool = True,
        probe_s: float | None = None,
        clock: Clock = clocks.now,
    ) -> None:
        """`probe_s`: ask something at least this often, so that `on_mark` is called; None: only when needed."""
        self.revision = 0
        self.region = api.Region()
        self.on_mark: Callable[[float, int, int], None] = _ignore_mark
        self.on_started_over: list[Callable[[], None]] = []
        self._reached_s = 0.0
        self._started_over = False
        self._addresses = list(dict.fromkeys(checked(address, tls) for address in addresses))
        self.clock = clock
        self._dialer = Dialer(tls, server_name, clock)
        self._follow_leader = follow_leader
        self._probe_s = probe_s
        self._session: Session | None = None
        self._draining: dict[Session, float] = {}
        self._waiting: deque[Call] = deque()
        self._resting: set[Call] = set()
        self._streams: dict[Stream, int] = {}
        self._avoid: dict[str, float] = {}
        self._silent_s = SILENT_S
        self._slowest_s = 0.0
        self._seeking: asyncio.Task[None] | None = None
        self._moving: asyncio.Task[None] | None = None
        self._look_s: float | None = None
        self._look_pause_s = LEADERLESS_S
        self._background: set[asyncio.Future[Any]] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._tick: asyncio.TimerHandle | None = None
        self._tick_due = 0.0
        self._brisk = False
        self._opened = False
        self._closed = False
        self._dial_error: Unavailable | None = None
        self._region_changed: asyncio.Future[None] | None = None

    # Its life

    async def open(self, *, timeout_s: float) -> None:
        """Connect to any node. Raises Unavailable after `timeout_s`, Denied if the region refuses the identity."""
        self._loop = asyncio.get_running_loop()
        self._opened = True
        self._region_changed = self._loop.create_future()
        try:
            async with asyncio.timeout(timeout_s):
                self._adopt(await self._seek(once=True))
        except TimeoutError:
            raise self._unreachable() from None

    async def close(self) -> None:
        """End every call, stream and connection. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._stop_timers()
        for task in (self._seeking, self._moving):
            if task is not None:
                task.cancel()
                self._background.add(task)
        for session in [*self._draining, *([self._session] if self._session else [])]:
            self._retire(session)
        self._fail_waiting()
        for stream in list(self._streams):
            stream.ended(Unavailable("the client was closed", reason="CLIENT_CLOSED"))
        self._streams.clear()
        await asyncio.gather(*self._background, return_exceptions=True)

    # Calling

    def call(self, method: str, request: bytes, deadline: float, *, writes: bool) -> asyncio.Future[bytes]:
        """Send `request`; the future is the encoded reply or one of the eight errors, at `deadline` at the latest."""
        if self._closed:
            raise Unavailable("the client is closed", reason="CLIENT_CLOSED")
        self._check_open()
        check_size(method, len(request))
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._send(Call(method, request, deadline, answer, writes=writes))
        if not self._brisk:
            self._be_brisk()
        return answer

    def start(self, stream: Stream) -> None:
        """Ask for a watch, now and again whenever it breaks."""
        if self._closed:
            stream.ended(Unavailable("the client is closed", reason="CLIENT_CLOSED"))
            return
        self._check_open()
        if len(self._streams) >= WATCHES_PER_SESSION_MAX:
            stream.ended(Unavailable("too many watches of one client", reason="WATCHES_FULL"))
            return
        self._streams[stream] = 0
        if self._session is not None:
            self._begin(stream, self._session)

    def stop(self, stream: Stream) -> None:
        """Take no more of a stream."""
        number = self._streams.pop(stream, 0)
        if number and self._session is not None:
            self._session.cancel(number)

    def later(self, delay_s: float, act: Callable[[], None]) -> None:
        """Do something after a delay, unless the channel is closed by then."""

        def due() -> None:
            self._timers.discard(handle)
            act()

        handle = self._loop.call_later(delay_s, due)
        self._timers.add(handle)

    async def regions(self) -> AsyncIterator[api.Region]:
        """Yield the region now and after every change that this client hears of."""
        while not self._closed:
            assert self._region_changed is not None
            changed = self._region_changed
            yield self.region
            await asyncio.shield(changed)

    def _check_open(self) -> None:
        if not self._opened:
            raise RuntimeError("the client is not connected yet: async with ControlPlane.connect(…) as cp")

    def _send(self, call: Call) -> None:
        session = self._session
        if (len(self._waiting) if session is None else session.unsent) >= WAITING_MAX:
            raise Unavailable("too many calls wait for the region", reason="CLIENT_QUEUE_FULL")
        if session is None:
            self._waiting.append(call)
        else:
            session.send(call)

    def _begin(self, stream: Stream, session: Session) -> None:
        self._streams[stream] = session.begin(stream)

    # Hearing

    def heard(self, session: Session, message: api.SessionReply) -> None:
        """Take in one message of a session."""
        asked_s = 0.0
        in_flight = session.in_flight
        for reply in message.replies:
            call = in_flight.pop(reply.id, None)
            if call is None:
                self._heard_stream(session, reply)
                continue
            asked_s = max(asked_s, call.sent_s)
            error = reply.status
            if error:
                self._refused(call, status.decode(error))
            elif not call.answer.done():
                call.answer.set_result(reply.reply)
        if message.revision > self.revision:
            self.revision, self._reached_s = message.revision, session.heard_s
        elif message.revision < self.revision and asked_s - message.age_ms / 1000 > self._reached_s + STARTED_OVER_S:
            self._start_over(session, message.revision)
        if asked_s:
            self._slowest_s = max(session.heard_s - asked_s, SLOWEST_FADES * self._slowest_s)
            self.on_mark(asked_s, message.revision, message.age_ms)
        if message.HasField("region"):
            self._heard_region(session, message.region)
        if not in_flight and session in self._draining:
            self._retire(session)

    def _start_over(self, session: Session, revision: int) -> None:
        """Forget what was seen of a region that no longer has it (rule 6)."""
        self.revision, self._reached_s, self._started_over = revision, session.heard_s, True
        for forget in self.on_started_over:
            forget()
        for stream in list(self._streams):
            self.stop(stream)
            stream.ended(
                Compacted(
                    "the region was started over: what was seen of it is not there any more",
                    reason="REGION_STARTED_OVER",
                    hint="list the present records (snapshot), then watch from there",
                )
            )

    def _heard_stream(self, session: Session, reply: api.OperationReply) -> None:
        stream = session.streams.get(reply.id)
        if stream is None:
            return
        if reply.reply:
            stream.receive(reply.reply)
        if reply.more:
            return
        del session.streams[reply.id]
        if self._streams.get(stream) != reply.id:
            return
        error = status.decode(reply.status) if reply.status else None
        if error is None or isinstance(error, Unavailable | OutcomeUnknown):
            self._streams[stream] = 0
            self.later(random.uniform(0, REST_MAX_S), lambda: self._begin_again(stream))  # noqa: S311
        else:
            del self._streams[stream]
            stream.ended(error)

    def _begin_again(self, stream: Stream) -> None:
        if self._streams.get(stream) == 0 and self._session is not None:
            self._begin(stream, self._session)

    def _heard_region(self, session: Session, region: api.Region) -> None:
        if session is not self._session:
            return
        self.region = region
        if region.leader:
            self._look_s, self._look_pause_s = None, LEADERLESS_S
        elif self._look_s is None:
            self._look_s = self.clock() + LEADERLESS_S
        if self._region_changed is not None and not self._region_changed.done():
            self._region_changed.set_result(None)
        self._region_changed = self._loop.create_future()
        self._consider_moving()

    def _refused(self, call: Call, error: ControlPlaneError) -> None:
        """Decide on an answer that is an error (rules 2 and 3)."""
        call.error = error
        if isinstance(error, OutcomeUnknown) and error.reason in _NOT_KEPT:
            if call.writes and not call.doubt:
                error = Unavailable("the region no longer keeps what was then", reason=SINCE_TOO_OLD)
            call.fail(error)
        elif error.reason == _SINCE_IN_FUTURE and self._started_over and not call.doubt:
            # What it had seen when it was made is gone, so it is made anew.
            call.fail(Unavailable("the region was started over", reason=SINCE_TOO_OLD))
        elif isinstance(error, Unavailable | OutcomeUnknown):
            call.doubt |= call.writes and isinstance(error, OutcomeUnknown)
            self._rest(call)
        elif call.doubt and isinstance(error, Denied | Contended):
            self._rest(call)
        else:
            call.fail(error)

    def _rest(self, call: Call) -> None:
        delay_s = random.uniform(0, min(REST_MAX_S, REST_S * 2**call.tries))  # noqa: S311 - only spreads load.
        call.tries += 1
        self._resting.add(call)
        self.later(delay_s, lambda: self._rested(call))

    def _rested(self, call: Call) -> None:
        self._resting.discard(call)
        if call.answer.done():
            return
        try:
            self._send(call)
        except Unavailable as error:
            call.give_up(str(error), error.reason)

    # Where to

    def _adopt(self, session: Session) -> None:
        """Make `session` the one to send on, and send what waits."""
        old, self._session = self._session, session
        if old is not None:
            self._draining[old] = self.clock() + DRAIN_S
            old.streams.clear()
            self._waiting.extend(old.take_unsent())
            if not old.in_flight:
                self._retire(old)
        session.run(self)
        for stream in list(self._streams):
            self._begin(stream, session)
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            session.send(call)
        self._heard_region(session, session.region)
        self._be_brisk()

    def lost(self, session: Session) -> None:
        """Learn that a session has ended; what it left unanswered is sent again (rule 2)."""
        if self._closed or (session is not self._session and session not in self._draining):
            return
        self._avoid[session.address] = self.clock() + AVOID_S
        self._retire(session)
        if self._session is None:
            if self._seeking is None or self._seeking.done():
                self._seeking = self._loop.create_task(self._find_another())
        else:
            waiting, self._waiting = self._waiting, deque()
            for call in waiting:
                self._session.send(call)

    def _retire(self, session: Session) -> None:
        """Close a session; its calls wait for the next one."""
        self._draining.pop(session, None)
        if session is self._session:
            self._session = None
        for call in session.take_unanswered():
            call.doubt |= call.writes
            if not call.answer.done():
                self._waiting.append(call)
        self._waiting.extend(session.take_unsent())
        self._keep(session.close())

    async def _find_another(self) -> None:
        session = await self._seek(once=False)
        if self._closed:
            await session.close()
        else:
            self._adopt(session)

    async def _seek(self, *, once: bool) -> Session:
        """Dial until a node speaks. `once`: let a denial be raised, for the caller who is just connecting."""
        rounds = 0
        while True:
            try:
                return await self._race(self._candidates())
            except Denied as error:
                if once:
                    raise
                self._deny(error)
            except Unavailable as error:
                self._dial_error = error
            rest_s = min(SEEK_MAX_S, REST_S * 2**rounds)
            rounds += 1
            await asyncio.sleep(random.uniform(0, rest_s))  # noqa: S311

    def _candidates(self) -> list[str]:
        """All addresses: the leader's first, those that just failed last, the rest in random order."""
        now = self.clock()
        addresses = list(self._addresses)
        random.shuffle(addresses)
        leader = self._leader_address()
        if leader and leader not in addresses:
            addresses.append(leader)
        return sorted(addresses, key=lambda each: (self._avoid.get(each, 0.0) > now, each != leader))

    async def _race(self, addresses: Iterable[str]) -> Session:
        """Dial one after the other, a moment apart or as soon as one fails; the first to speak wins (rule 5)."""
        dials: set[asyncio.Task[Session]] = set()
        errors: list[ControlPlaneError] = []
        rest = deque(addresses)
        try:
            while rest or dials:
                if rest:
                    dials.add(self._loop.create_task(self._dialer.dial(rest.popleft())))
                patience = DIAL_APART_S if rest else None
                done, dials = await asyncio.wait(dials, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                winner = _first_open(done, errors)
                if winner is not None:
                    for other in done:
                        self._discard(other, winner)
                    return winner
        finally:
            for dial in dials:
                dial.cancel()
                dial.add_done_callback(lambda done: self._discard(done, None))
                self._keep(dial)
        denied = [error for error in errors if isinstance(error, Denied)]
        raise (denied or errors)[0]

    def _discard(self, dial: asyncio.Task[Session], winner: Session | None) -> None:
        """Close what a dial brought that came second."""
        if not dial.cancelled() and dial.exception() is None and dial.result() is not winner:
            self._keep(dial.result().close())

    def _leader_address(self) -> str:
        address = self.region.leader_address if self._follow_leader else ""
        try:
            return checked(address, self._dialer.tls) if address else ""
        except Invalid:
            return ""

    def _consider_moving(self) -> None:
        """Go to the leader, unless this is it, it was just tried, or somebody is on the way (rule 5)."""
        leader, session = self._leader_address(), self._session
        if not leader or session is None or session.address == leader or self._closed:
            return
        if self._moving is not None and not self._moving.done():
            return
        wait_s = self._avoid.get(leader, 0.0) - self.clock()
        if wait_s > 0:
            self.later(wait_s, self._consider_moving)
        else:
            self._moving = self._loop.create_task(self._move(leader))

    async def _move(self, leader: str) -> None:
        try:
            session = await self._dialer.dial(leader)
        except (Unavailable, Denied):
            self._avoid[leader] = self.clock() + AVOID_S
            self.later(AVOID_S, self._consider_moving)
            return
        if self._closed or self._session is None:
            # Somebody is seeking already, and will find the leader too.
            await session.close()
            return
        # Whatever the new node says of the leader now may ask for another move.
        self._moving = None
        self._adopt(session)

    def _leave_leaderless(self, session: Session, now: float) -> None:
        """Look for a node that knows a leader when this one has known none for a moment (rule 5)."""
        if self._look_s is None or now < self._look_s or not (self._moving is None or self._moving.done()):
            return
        self._look_pause_s = min(2 * self._look_pause_s, LEADERLESS_MAX_S)
        self._look_s = now + self._look_pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - only spreads load.
        self._moving = self._loop.create_task(self._move_to_a_leader(session))

    async def _move_to_a_leader(self, session: Session) -> None:
        others = [address for address in self._candidates() if address != session.address]
        try:
            found = await self._race(others) if others else None
        except (Unavailable, Denied):
            return
        if found is None:
            return
        if self._closed or self._session is not session or not found.region.leader:
            await found.close()
            return
        self._moving = None
        self._adopt(found)
        self.lost(session)  # What waits there is not answered as long as it lasts.

    # Time

    def _be_brisk(self) -> None:
        self._brisk = True
        if self._tick is not None:
            self._tick.cancel()
        self._arm(TICK_S)

    def _arm(self, delay_s: float) -> None:
        self._tick_due = self._loop.time() + delay_s
        self._tick = self._loop.call_later(delay_s, self._on_tick)

    def _on_tick(self) -> None:
        """Look after deadlines, silence and probes; brisk while something is due, seldom while idle."""
        late = self._loop.time() - self._tick_due > LATE_S
        now = self.clock()
        self._expire(now)
        session = self._session
        if session is not None:
            self._listen_for(session, now, late=late)
            self._leave_leaderless(session, now)
            if self._probe_s is not None and now - session.sent_s >= self._probe_s:
                self.probe()
        for old in [old for old, until in self._draining.items() if until <= now]:
            self.lost(old)
        busy = self._waiting or self._resting or self._draining or (session and session.busy)
        self._brisk = bool(busy)
        if self._brisk:
            self._arm(TICK_S)
        elif self._probe_s is not None and session is not None:
            self._arm(max(TICK_S, self._probe_s - (now - session.sent_s)))

    def _listen_for(self, session: Session, now: float, *, late: bool) -> None:
        """Probe a silent session, then give it up (rule 4)."""
        if late or not session.in_flight:
            session.forgive(now)
            return
        silence_s = session.silence_s(now)
        if silence_s <= SILENT_S:
            if now - session.opened_s > TRUSTED_AFTER_S:
                self._silent_s = SILENT_S
            return
        patience_s = min(SILENT_MAX_S, max(self._silent_s, SLOWER_THAN_EVER * self._slowest_s))
        if silence_s > 2 * patience_s + session.bytes_in_flight / BYTES_PER_S and session.probed:
            self._silent_s = min(SILENT_MAX_S, 2 * self._silent_s)
            self.lost(session)
        elif silence_s > patience_s and not session.probed:
            session.probed = True
            self.probe()

    def probe(self) -> None:
        """Ask for something that any living node answers at once."""
        answer: asyncio.Future[bytes] = self._loop.create_future()
        answer.add_done_callback(_forget)
        header = api.RequestHeader(consistency=api.LOCAL)
        request = api.GetRegionRequest(header=header).SerializeToString()
        # With a full queue there is traffic enough to hear from.
        with suppress(Unavailable):
            self._send(Call("GetRegion", request, self.clock() + CALL_TIMEOUT_MAX_S, answer, writes=False))

    def _expire(self, now: float) -> None:
        for call in self._waiting:
            expire(call, now)
        for call in self._resting:
            expire(call, now)
        for session in (self._session, *self._draining):
            if session is not None:
                session.expire(now)
        if self._waiting and self._waiting[0].answer.done():
            self._waiting = deque(call for call in self._waiting if not call.answer.done())

    # Endings

    def _unreachable(self) -> Unavailable:
        known = ", ".join(self._addresses)
        cause = self._dial_error
        error = Unavailable(
            f"no node answered at {known}: {cause or 'no answer in time'}",
            reason="UNREACHABLE",
            hint="are the addresses right, the nodes up, and the certificates of this fleet?",
        )
        error.__cause__ = cause
        return error

    def _deny(self, error: Denied) -> None:
        for call in self._waiting:
            call.fail(error)
        self._waiting.clear()
        for stream in list(self._streams):
            del self._streams[stream]
            stream.ended(error)

    def _fail_waiting(self) -> None:
        for call in [*self._waiting, *self._resting]:
            call.give_up("the client was closed", "CLIENT_CLOSED")
        self._waiting.clear()
        self._resting.clear()

    def _stop_timers(self) -> None:
        for handle in [*self._timers, *([self._tick] if self._tick else [])]:
            handle.cancel()
        self._timers.clear()
        if self._region_changed is not None and not self._region_changed.done():
            self._region_changed.set_result(None)

    def _keep(self, ending: Awaitable[Any]) -> None:
        """Own something that ends by itself soon, until it has."""
        task = asyncio.ensure_future(ending)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _first_open(done: Iterable[asyncio.Task[Session]], errors: list[ControlPlaneError]) -> Session | None:
    for dial in done:
        error = dial.exception()
        if error is None:
            return dial.result()
        if not isinstance(error, Unavailable | Denied):
            raise error
        errors.append(error)
    return None


def check_size(method: str, size: int) -> None:
    """Raise Invalid if a request has too many bytes: a node would end the whole stream for what fits in no message."""
    if size > REQUEST_BYTES_MAX:
        raise Invalid(
            f"the request of {method} takes {size} bytes; {REQUEST_BYTES_MAX} are allowed", reason="REQUEST_TOO_LARGE"
        )


def _forget(answer: asyncio.Future[bytes]) -> None:
    """Look at the outcome of a probe, whatever it is: what counts is that something came."""
    if not answer.cancelled():
        answer.exception()


def _ignore_mark(asked_s: float, revision: int, age_ms: int) -> None:
    """Nobody keeps a mirror."""
