"""The three questions about a workflow, as one register per key records them."""

from __future__ import annotations

from typing import NamedTuple

from chaos.real.recording import Book, Question, Worker
from chaos.real.workloads.base import nothing
from controlplane.checking.histories import Value
from controlplane.sdk import LINEARIZABLE
from controlplane.sdk.calls import Calls, Consistency
from controlplane.v1 import api_pb2 as api


class Written(NamedTuple):
    """An acknowledged write."""

    key: str
    version: int
    revision: int
    value: str


async def create(book: Book, worker: Worker, caller: Calls, key: str) -> Written | None:
    """Create a workflow with a value of its own; None if that was refused or failed."""
    value = worker.unique()
    reply = await book.ask(
        worker,
        Question(key, "create", value, writes=True),
        lambda: caller.create_workflow(key, value.encode()),
        lambda reply: reply.version,
        nothing,
    )
    return None if reply is None else Written(key, reply.version, reply.header.revision, value)


async def swap(book: Book, worker: Worker, caller: Calls, key: str, version: int) -> Written | None:
    """Replace the workflow's value if it is at `version`; None if that was refused or failed."""
    value = worker.unique()
    reply = await book.ask(
        worker,
        Question(key, "cas", (version, value), writes=True),
        lambda: caller.compare_and_swap(key, version, value.encode()),
        lambda reply: reply.version,
        nothing,
    )
    return None if reply is None else Written(key, reply.version, reply.header.revision, value)


async def read(
    book: Book,
    worker: Worker,
    caller: Calls,
    key: str,
    *,
    kind: str = "read",
    consistency: Consistency = LINEARIZABLE,
) -> api.GetWorkflowReply | None:
    """Read a workflow; None if it is absent or that failed. Kind "read" is for what promises to be linearizable."""
    return await book.ask(
        worker,
        Question(key, kind, consistency.revision or None),
        lambda: caller.get_workflow(key, consistency=consistency),
        _versioned,
        nothing,
    )


def value_of(view: api.WorkflowView) -> str:
    """The value that `create` and `swap` put there."""
    return view.workflow.state.decode()


def _versioned(reply: api.GetWorkflowReply) -> Value:
    return reply.workflow.version, value_of(reply.workflow)
