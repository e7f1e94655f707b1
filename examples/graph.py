"""A node of a LangGraph graph that asks permission, takes its configuration, and keeps its progress.

pip install langgraph
python examples/graph.py [ADDRESS]
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph

from controlplane.sdk import ControlPlane, Refused

WORKFLOW = "research-1"


class State(TypedDict):
    """What travels through the graph."""

    question: str
    answer: str


def research_node(cp: ControlPlane) -> Any:
    """Return the node; the client is shared by all nodes of the process."""

    async def research(state: State) -> dict[str, str]:
        # Both look into the mirror: microseconds, no call. A kill raises Stopped and ends the run.
        cp.ensure_alive(agent_type="researcher", workflow=WORKFLOW, tools=("search",))
        config = cp.config(tenant="acme")
        answer = f"{state['question']} answered by {config.model}, prompt {config.prompt_version}"

        def remember(kept: dict[str, Any]) -> dict[str, Any]:
            return {**kept, "answers": [*kept.get("answers", []), answer]}

        await cp.update_state_with_retry(WORKFLOW, remember)
        return {"answer": answer}

    return research


async def main(address: str) -> None:
    """Run the graph once."""
    async with ControlPlane.connect(address, insecure=True) as cp:
        try:
            await cp.create_workflow(WORKFLOW, b"{}")
        except Refused as refused:
            if refused.reason != "WORKFLOW_EXISTS":
                raise
        graph = StateGraph(State)
        graph.add_node("research", research_node(cp))
        graph.add_edge(START, "research")
        graph.add_edge("research", END)
        result = await graph.compile().ainvoke({"question": "why is the sky blue?", "answer": ""})
        print(result["answer"])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7000"))
