"""A plain program: ask how to run, ask whether to run, and change shared state safely.

python examples/script.py [ADDRESS]
"""

from __future__ import annotations

import sys
from typing import Any

from controlplane.sdk import MirrorStale, Refused, Stopped
from controlplane.sdk.sync import ControlPlane

WORKFLOW = "order-4711"


def pay(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state after one more payment. Pure: it may run again if somebody else writes first."""
    return {**state, "payments": state.get("payments", 0) + 1}


def main(address: str) -> None:
    """Run once."""
    with ControlPlane(address, insecure=True) as cp:
        config = cp.config(user="u-17", tenant="acme")
        print(f"run prompt {config.prompt_version} on {config.model} with {', '.join(config.tools_enabled)}")

        try:
            cp.ensure_alive(tenant="acme", agent_type="payer", workflow=WORKFLOW, tools=("bank",))
        except (Stopped, MirrorStale) as why_not:
            sys.exit(f"not now: {why_not}")

        try:
            cp.create_workflow(WORKFLOW, b"{}")
        except Refused as refused:
            if refused.reason != "WORKFLOW_EXISTS":
                raise
        print("state is now", cp.update_state_with_retry(WORKFLOW, pay))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7000")
