"""What cpctl prints for programs: plain values made from the API's messages. Pure.

Rules: (1) a shape is part of the interface: fields are added, never renamed or removed; (2) every field is always
there, with null for what is absent; (3) revisions and times are numbers, times in Unix milliseconds; (4) bytes are
text if they are UTF-8, else base64, and the field `<name>_encoding` says which; names of processes are hexadecimal.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from controlplane.errors import ControlPlaneError
from controlplane.v1 import api_pb2 as api
from controlplane.v1 import records_pb2 as records

Shape = dict[str, Any]

FLAG_TYPES = {records.BOOL: "bool", records.STRING: "string", records.INT: "int"} | {
    records.NUMBER: "number",
    records.JSON: "json",
}
# What a node says of an age that it cannot know: it never had proof of being up to date, or never heard of the member.
_AGE_UNKNOWN_MS = (1 << 32) - 1
SCOPE_KINDS = {
    records.SCOPE_REGION: "region",
    records.SCOPE_ENVIRONMENT: "environment",
    records.SCOPE_TENANT: "tenant",
    records.SCOPE_AGENT_TYPE: "agent_type",
    records.SCOPE_TOOL: "tool",
    records.SCOPE_WORKFLOW: "workflow",
}


def served(header: api.ReplyHeader) -> Shape:
    """What was served, by whom, and how old it may be."""
    return {
        "revision": header.revision,
        "region": header.region,
        "node": header.node,
        "age_ms": header.age_ms if header.age_ms < _AGE_UNKNOWN_MS else None,
        "epoch": header.epoch,
        "break_glass": records.Reach.Name(header.break_glass).lower() if header.break_glass else None,
    }


def meta(message: api.Meta) -> Shape:
    """Where a record stands, who wrote it, when and why."""
    return {
        "revision": message.revision,
        "created": message.created,
        "version": message.version,
        "actor": message.actor,
        "action": message.action,
        "reason": message.reason,
        "at_ms": message.at_ms,
    }


def region(message: api.Region) -> Shape:
    """Who leads a region."""
    return {
        "fleet": message.fleet,
        "region": message.name,
        "jurisdiction": message.jurisdiction,
        "leader": message.leader or None,
        "leader_address": message.leader_address or None,
        "term": message.term,
        "leader_age_ms": message.leader_age_ms,
    }


def member(message: api.Member) -> Shape:
    """One node as another one sees it."""
    return {
        "name": message.name,
        "address": message.address,
        "connected": message.connected,
        "match": message.match,
        "heard_ms": message.heard_ms if message.heard_ms < _AGE_UNKNOWN_MS else None,
        "state": message.state,
    }


def status(reply: api.GetStatusReply) -> Shape:
    """One node's own view."""
    return {
        "node": reply.node,
        "role": reply.role,
        **region(reply.region),
        "commit": reply.commit,
        "applied": reply.applied,
        "last": reply.last,
        "hash": reply.hash,
        "members": [member(each) for each in reply.members],
        "records": reply.records,
        "live_bytes": reply.live_bytes,
        "quota_bytes": reply.quota_bytes,
        "disk_free_bytes": reply.disk_free_bytes,
        "watchers": reply.watchers,
        "uptime_ms": reply.uptime_ms,
        "version": reply.version,
        "links": [link(each) for each in reply.links],
        "isolated": bool(reply.links) and all(each.state == "down" for each in reply.links),
        "erasures": {
            "pending": reply.erasures.pending,
            "due": reply.erasures.due,
            "scrubbed": reply.erasures.scrubbed,
        },
        "served": served(reply.header),
    }


def outline(reply: api.GetOutlineReply, of: str) -> Shape:
    """What another region shows of itself, and how the one at hand stands with it; null where it could not be asked."""
    return {
        "region": of,
        "unreachable": reply.unreachable or None,
        "outline": _outline(reply.outline) if reply.HasField("outline") else None,
        "link": link(reply.link) if reply.HasField("link") else None,
        "error": None,
        "served": served(reply.header),
    }


def no_outline(of: str, failure: ControlPlaneError) -> Shape:
    """The same where a region refused to show itself."""
    nothing = dict.fromkeys(("unreachable", "outline", "link"))
    return {"region": of, **nothing, "error": error(failure), "served": served(api.ReplyHeader())}


def _outline(message: api.Outline) -> Shape:
    return {
        "region": message.region,
        "jurisdiction": message.jurisdiction,
        "leader": message.leader or None,
        "leader_age_ms": message.leader_age_ms,
        "revision": message.revision,
        "age_ms": message.age_ms if message.age_ms < _AGE_UNKNOWN_MS else None,
        "nodes": [
            {"name": each.name, "up": each.up, "behind": each.behind if each.HasField("behind") else None}
            for each in message.nodes
        ],
        "quorum": message.quorum,
        "healthy": bool(message.leader) and all(each.up for each in message.nodes),
        "links": [_outline_link(each) for each in message.links],
        "isolated": message.isolated,
        "switches_engaged": message.switches_engaged if message.stops_told else None,
        "stop_ids": list(message.stop_ids) if message.stops_told else None,
    }


def _outline_link(message: api.OutlineLink) -> Shape:
    copies = [
        {
            "reach": records.Reach.Name(each.reach).lower(),
            "age_ms": each.age_ms if each.age_ms < _AGE_UNKNOWN_MS else None,
            "listing": each.listing,
        }
        for each in message.copies
    ]
    return {"region": message.region, "state": message.state, "copies": copies}


def break_glass(view: api.BreakGlassView) -> Shape:
    """A read of what is pinned, and where it was written down."""
    read = view.read
    return {
        "shown": read.direction == records.Passage.EGRESS,
        "counterparty": read.counterparty,
        "actor": read.actor,
        "reason": read.reason or None,
        "method": read.method or None,
        "partition": read.partition or None,
        "reach": records.Reach.Name(read.reach).lower(),
        "epoch": read.epoch,
        "revision": read.revision,
        "digest": read.digest.hex(),
        "meta": {"revision": view.meta.revision, "at_ms": view.meta.at_ms},
    }


def link(message: api.Link) -> Shape:
    """How a region stands with another one, and what it holds copies of."""
    return {
        "region": message.region,
        "jurisdiction": message.jurisdiction,
        "state": message.state,
        "reason": message.reason or None,
        "views": [view(each) for each in message.views],
        "exported": [records.Reach.Name(reach).lower() for reach in message.exported],
    }


def view(message: api.View) -> Shape:
    """A copy of what another region shares."""
    return {
        "reach": records.Reach.Name(message.reach).lower(),
        "revision": message.revision,
        "age_ms": message.age_ms if message.age_ms < _AGE_UNKNOWN_MS else None,
        "listing": message.listing,
    }


def partition_view(view_of: api.PartitionView) -> Shape:
    """A partition: where it is at home, and what becomes of its newest move."""
    found = view_of.partition
    return {
        "id": found.id,
        "home": found.home,
        "epoch": found.epoch,
        "reach": records.Reach.Name(found.reach).lower(),
        "environment": found.environment,
        "default_for": list(found.default_for),
        "state": view_of.state,
        "former": [{"home": each.home, "epoch": each.epoch, "upto": each.upto} for each in found.former],
        "copy": view(view_of.copy) if view_of.HasField("copy") else None,
        "move": move(view_of) if view_of.HasField("move") else None,
        "waits_for": view_of.waits_for or None,
        "quarantined": view_of.quarantined,
    }


def move(view_of: api.PartitionView) -> Shape:
    """The newest move that a region took part in, as it has it."""
    message = view_of.move
    return {
        "from": message.partition.home,
        "to": message.to,
        "epoch": message.epoch,
        "phase": records.Move.Phase.Name(message.phase).lower(),
        "forced": message.forced,
        "attestation": message.attestation or None,
        "upto": message.upto,
        "age_ms": message.age_ms if message.age_ms < _AGE_UNKNOWN_MS else None,
        "meta": meta(view_of.moved),
    }


def flag(message: records.Flag) -> Shape:
    """A flag's definition."""
    return {
        "name": message.name,
        "type": FLAG_TYPES.get(message.type, "unknown"),
        "enabled": message.enabled,
        "variants": {variant.name: flag_value(variant.value) for variant in message.variants},
        "default": message.default_variant if message.HasField("default_variant") else None,
        "targeting": _json_or_none(message.targeting),
        "metadata": _json_or_none(message.metadata),
        "description": message.description,
    }


def flag_view(view: api.FlagView) -> Shape:
    """A flag and where it stands."""
    return {**flag(view.flag), "meta": meta(view.meta)}


def flag_value(value: records.FlagValue) -> Any:
    """A value as JSON has it; a number that is not an integer stays exact decimal text."""
    which = value.WhichOneof("value")
    if which == "json_value":
        return json.loads(value.json_value)
    return getattr(value, which) if which else None


def agent_config(reply: api.GetAgentConfigReply) -> Shape:
    """What an agent is told to run with; per field what decided it."""
    config = {
        "prompt_version": reply.config.prompt_version,
        "model": reply.config.model,
        "tools_enabled": list(reply.config.tools_enabled),
        "max_iterations": reply.config.max_iterations,
        "guardrails": list(reply.config.guardrails),
    }
    fields = [
        {
            "name": field.name,
            "value": config.get(field.name),
            "flag": field.flag,
            "variant": field.variant or None,
            "reason": api.ConfigReason.Name(field.reason).lower(),
            "revision": field.revision,
        }
        for field in reply.fields
    ]
    return {"config": config, "fields": fields, "served": served(reply.header)}


def workflow(message: records.Workflow) -> Shape:
    """A workflow's state."""
    return {
        "id": message.id,
        **content("state", message.state),
        "schema_version": message.schema_version,
        "code_version": message.code_version,
    }


def workflow_view(view: api.WorkflowView) -> Shape:
    """A workflow and where it stands."""
    return {**workflow(view.workflow), "version": view.version, "meta": meta(view.meta)}


def election(message: records.Election) -> Shape:
    """A lease."""
    return {
        "name": message.name,
        "holder": message.holder,
        "process": message.process.hex(),
        "ttl_ms": message.ttl_ms,
        **content("value", message.value),
    }


def fence(message: api.Fence) -> Shape:
    """The right to act, as --fence takes it in `text`."""
    text = f"{message.election}:{message.epoch}:{message.revision}"
    return {
        "election": message.election,
        "epoch": message.epoch,
        "revision": message.revision,
        "text": text,
    }


def election_view(view: api.ElectionView) -> Shape:
    """A lease, its fence and where it stands."""
    return {**election(view.election), "fence": fence(view.fence), "meta": meta(view.meta)}


def scope(message: records.Scope) -> str:
    """What a kill switch stops, as the commands take it: `tenant:acme`, `region`."""
    kind = SCOPE_KINDS.get(message.kind, "unknown")
    return f"{kind}:{message.name}" if message.name else kind


def switch(message: records.Switch) -> Shape:
    """A kill switch."""
    return {
        "scope": scope(message.scope),
        "engaged": message.engaged,
        "engaged_by": message.engaged_by,
        "engaged_reason": message.engaged_reason,
    }


def switch_view(view: api.SwitchView) -> Shape:
    """A kill switch and where it stands; `region` is where it was thrown, if not here."""
    return {**switch(view.switch), "meta": meta(view.meta), "region": view.region or None}


def stop(message: records.Stop) -> Shape:
    """What crosses borders about a kill switch."""
    return {"engaged": message.engaged}


def stop_exception(message: records.StopException) -> Shape:
    """Which stop of another region is not heeded."""
    return {"region": message.region, "epoch": message.epoch, "revision": message.revision}


def stop_view(view: api.StopView) -> Shape:
    """A stop of another region; `scope` is null where nothing here tells what it stops."""
    return {
        "region": view.region,
        "id": view.id,
        "scope": scope(view.scope) if view.HasField("scope") else None,
        "engaged": view.engaged,
        "excepted": view.excepted,
        "epoch": view.epoch,
        "revision": view.revision,
    }


def change(message: api.Change) -> Shape:
    """One change of one record; `value` is null where it was deleted, `home` says of a copy whose it is."""
    which = message.WhichOneof("value")
    value: Shape | None = None
    match which:
        case "flag":
            value = flag(message.flag)
        case "switch":
            value = switch(message.switch)
        case "workflow":
            value = workflow(message.workflow)
        case "election":
            value = election(message.election)
        case "stop":
            value = stop(message.stop)
        case "exception":
            value = stop_exception(message.exception)
    return {
        "kind": message.kind,
        "name": message.name,
        "value": value,
        "meta": meta(message.meta),
        "home": message.home or None,
    }


def error(failure: ControlPlaneError) -> Shape:
    """One of the eight errors."""
    return {
        "error": type(failure).__name__,
        "reason": failure.reason,
        "message": str(failure),
        "hint": failure.hint or None,
        "details": failure.details,
    }


def content(name: str, value: bytes) -> Shape:
    """Bytes under a name, as text where they are text."""
    try:
        return {name: value.decode(), f"{name}_encoding": "utf-8"}
    except UnicodeDecodeError:
        return {name: base64.b64encode(value).decode(), f"{name}_encoding": "base64"}


def _json_or_none(text: str) -> Any:
    return json.loads(text) if text else None
