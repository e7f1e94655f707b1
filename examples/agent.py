"""An orchestrator of which one works at a time. Start several; stop one and another takes over.

python examples/agent.py [ADDRESS] [STEPS]
"""

from __future__ import annotations

import asyncio
import os
import sys

from controlplane.sdk import ControlPlane, Lease, LeaseLost, MirrorStale, Refused, Stopped

WORKFLOW = "plan-of-the-day"
STEP_S = 0.2


async def main(address: str, steps: int) -> None:
    """Work until `steps` steps are done, by whoever is elected."""
    name = f"planner {os.getpid()}"
    async with ControlPlane.connect(address, insecure=True) as cp:
        await ensure_workflow(cp)
        while True:
            try:
                async with cp.election("planner", ttl_s=3, value=name.encode()).campaign() as lease:
                    print(f"{name}: elected, fence {lease.fence.revision}", flush=True)
                    await lead(cp, lease, name, steps)
                    return
            except LeaseLost:
                print(f"{name}: lost the lease, campaigning again", flush=True)


async def lead(cp: ControlPlane, lease: Lease, name: str, steps: int) -> None:
    """Do one step after the other, each under the fence: a planner that was replaced cannot write."""

    def advance(state: dict[str, int]) -> dict[str, int]:
        return {"step": min(steps, state.get("step", 0) + 1)}

    while True:
        try:
            cp.ensure_alive(agent_type="planner", workflow=WORKFLOW)
        except (Stopped, MirrorStale) as why_not:
            print(f"{name}: holding still, {why_not}", flush=True)
            await asyncio.sleep(STEP_S)
            continue
        state = await cp.update_state_with_retry(WORKFLOW, advance, fence=lease.fence)
        print(f"{name}: step {state['step']} with {cp.config(tenant='acme').model}", flush=True)
        if state["step"] == steps:
            return
        await asyncio.sleep(STEP_S)


async def ensure_workflow(cp: ControlPlane) -> None:
    """Create the workflow unless somebody did."""
    try:
        await cp.create_workflow(WORKFLOW, b"{}")
    except Refused as refused:
        if refused.reason != "WORKFLOW_EXISTS":
            raise


if __name__ == "__main__":
    asyncio.run(
        main(
            sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7000",
            int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000,
        )
    )
