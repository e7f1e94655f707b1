"""A consensus-backed control plane for fleets of AI agents."""
