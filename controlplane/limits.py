"""Every bound of the system, in one place.

Bounds that the replicated rules use (marked R) are part of the format of the state: they change only together with
`STATE_FORMAT`, when every node of a region supports the new one.
"""

from __future__ import annotations

STATE_FORMAT = 3
"""R. Version of the rules of apply and of the layout of the store."""
ENTRY_FORMAT = 3
"""R. Version of an entry of the log; its first byte."""

NAME_BYTES_MAX = 256
"""R. Names of flags, workflows, elections, scopes, partitions: UTF-8, no control characters."""
VALUE_BYTES_MAX = 512 * 1024
"""R. The value of one record."""
TEXT_BYTES_MAX = 1024
"""R. Reasons and descriptions."""
WRITES_PER_TXN_MAX = 128
"""R. Writes of one transaction."""
ERASES_PER_TXN_MAX = 512
"""R. Rows that one transaction erases."""
OUTCOME_SPAN = 1 << 17
"""R. Revisions per generation of kept outcomes. A retry is recognised for at least this many revisions."""
EVENTS_KEPT = 1 << 17
"""Revisions a watcher may lag behind and still resume without listing again."""
TRIM_REVISIONS = 1 << 9
"""Past events and outcomes are dropped in steps of what this many revisions left behind: a step holds up the loop."""
TRIM_STEPS_MAX = 16
"""Steps of one round of trimming, each an entry of its own; 50 ms lie between two rounds."""
WORKFLOW_HISTORY_KEPT = 100
"""Versions of a workflow that can be read back (at least; at most twice as many are stored)."""

REQUEST_ID_BYTES = 16
PROCESS_BYTES = 16
VARIANTS_MAX = 64
JSON_DEPTH_MAX = 64
SUBJECT_TOOLS_MAX = 256
SCHEMA_VERSION_MAX = (1 << 31) - 1
LEASE_TTL_MS_MIN = 500
LEASE_TTL_MS_MAX = 10 * 60 * 1000
HOMES_MAX = 64
"""Homes that one partition can have had: each is remembered wherever the partition is known."""
ELECTIONS_MAX = 10_000
"""Live elections of one partition."""

ENTRY_BYTES_MAX = 2 * 1024 * 1024
"""One entry of the log. A batch closes before it would grow beyond this."""
BATCH_TXNS_MAX = 256
"""Transactions of one entry."""
PLAN_S_MAX = 0.02
"""A batch closes when planning it has held the event loop for so long, however few there are in it."""
TURN_S = 0.01
"""Answering reads holds one turn of the event loop for so long; the rest waits until others had as much of it."""
TURN_CALLS_MAX = 128
"""Reads answered in one turn at most: what an answer sets off in its caller takes time of its own."""
GATHER_PAUSE_S = 0.001
"""A batch is planned when nothing was added to it for so long,"""
GATHER_S_MAX = 0.008
"""and after so long in any case."""
QUEUE_CALLS_MAX = 8192
"""Calls of one sort that wait to be planned, and reads that wait for their turn; beyond it the node answers
Unavailable at once."""
READS_AHEAD_MAX = 8192
"""Reads that wait for a revision which is not there yet. They take no room from those that any majority can answer."""
QUEUE_BYTES_MAX = 64 * 1024 * 1024
"""Bytes of the requests of one sort that wait to be planned."""
PLAN_ATTEMPTS_MAX = 5
"""Times a call is planned again after a conflict before it is Contended."""

QUOTA_BYTES = 2 * 1024 * 1024 * 1024
"""Live bytes of a region's store at which ordinary writes are refused; stopping is still possible."""
QUOTA_RESERVED_BYTES = 64 * 1024 * 1024
"""Room above the quota for kill switches."""
DISK_FREE_BYTES_MIN = 128 * 1024 * 1024
"""Free bytes, on the disk that decides a majority, below which ordinary writes are refused."""

MESSAGE_BYTES_MAX = 4 * 1024 * 1024
"""Any message on the wire."""
REQUEST_BYTES_MAX = 1024 * 1024
"""One request: a value, and what is said of it. A message holds several, and what is around them."""
PAGE_MAX = 1000
PAGE_DEFAULT = 100
PAGE_BYTES_MAX = 1024 * 1024
"""Values in one page of a list."""
EVENTS_SCANNED_MAX = 4096
"""Events that one page of a listing is looked for among: bounds how long a narrow filter holds the event loop."""
SWITCHES_SCANNED_MAX = 2048
"""Switches that one page of the engaged ones is looked for among, or that a new leader compares in one turn."""
OPERATIONS_PER_SESSION_MAX = 4096
"""Operations in flight on one session, in one message of it, and replies that wait to leave in one."""
OPERATIONS_PER_TURN_MAX = 128
"""Operations of all sessions of a node that are begun in one turn of its event loop."""
READS_PER_SESSION_MAX = 64
"""Reads of one session that are being answered; with `SESSION_REPLIES_BYTES_MAX` it bounds what a caller that does not
read can make a node hold."""
WATCHES_PER_SESSION_MAX = 256
SESSION_REPLIES_BYTES_MAX = 4 * 1024 * 1024
"""Replies that wait for a session's caller to read; beyond it the node stops reading from that caller."""
REPLIES_PER_NODE_BYTES_MAX = 256 * 1024 * 1024
"""Replies of one node that wait for their callers to read; reads beyond it are refused. gRPC holds each once more."""
REPLIES_PER_CALLER_BYTES_MAX = 64 * 1024 * 1024
"""What of it one caller may take."""
REPLY_TIMEOUT_S = 30.0
"""A caller that has not read one message (of a session, of a stream, or a reply) after so long is cut off."""
CALLS_PER_NODE_MAX = 8192
"""Calls outside of sessions in flight at one node."""
CONNECTIONS_PER_NODE_MAX = 16_384
"""Connections of callers at one node, if it may open as many: what comes then is closed at once."""
HANDSHAKE_MS_MAX = 5_000
"""Who has not said who it is after so long is closed: until then anybody can hold a connection."""
DESCRIPTORS_MIN = 1024
"""What a node must be allowed to open, files and connections together: it does not start with less,"""
DESCRIPTORS_MAX = 65_536
"""and asks for no more than this."""
DESCRIPTORS_RESERVED = 512
"""What callers leave for files, other nodes, other regions and the metrics."""
METRICS_CONNECTIONS_MAX = 64
"""Open connections at a node's metrics port."""
WATCHES_PER_NODE_MAX = 10_000
LISTINGS_PER_NODE_MAX = 64
"""Watchers that are being shown more than a page of what there is: each holds a page, and a view of the store."""
LISTING_PAUSE_S_MAX = 60.0
"""A watcher that takes no page of its listing for so long has to begin again: a view holds disk and memory."""
SESSIONS_PER_NODE_MAX = 10_000

CALL_TIMEOUT_S = 5.0
"""How long a call may take if the caller did not say."""
CALL_TIMEOUT_MAX_S = 60.0
BREAK_GLASS_READS_MAX = 10
"""Break-glass reads by one region"""
BREAK_GLASS_PERIOD_S = 60.0
"""in so many seconds, as one leader counts them."""
PROGRESS_MS = 1000
PROGRESS_MS_MIN = 100
MIRROR_AGE_MAX_MS = 5000
"""Kill checks on a mirror older than this raise MirrorStale (production's default)."""
FAULT_MS_MIN = 100
FAULT_MS_MAX = 120_000
"""A fault of a drill ends by the node's own doing after this long at the latest."""
RESERVATION_MS_MAX = 30 * 60 * 1000
"""A node is kept for one drill, unharmed, at most this long."""
FAULT_DELAY_MS_MAX = 2_000
FAULTS_PER_NODE_MAX = 8
"""Faults in effect at one node."""
FAULTS_REMEMBERED_MAX = 1024
"""Faults and aborted drills that a node knows again."""
FAULT_HELD_MAX = 4096
"""Messages to one peer that a delayed link holds back; what comes then is lost."""
DRILL_LINE_BYTES_MAX = 4096
"""One message between a node and the process that watches over it."""
