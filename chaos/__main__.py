"""`python -m chaos`: everything that breaks the control plane to see whether it holds."""

from __future__ import annotations

import click

from chaos.checks import check_command
from chaos.fleet import fleet_command
from chaos.fuzzing import fuzz_command
from chaos.leaks import leaks_command
from chaos.plane_command import simulate_region_command
from chaos.real.commands import run_command
from chaos.real.failover import failover_command
from chaos.real.sweep import disks_command
from chaos.simulating import plants_command, simulate_command, sweep_command
from chaos.tiers import tier_command
from chaos.world_command import simulate_fleet_command


@click.group()
def main() -> None:
    """Break the control plane and see whether it holds."""


main.add_command(simulate_command)
main.add_command(sweep_command)
main.add_command(plants_command)
main.add_command(simulate_region_command)
main.add_command(simulate_fleet_command)
main.add_command(fleet_command)
main.add_command(run_command)
main.add_command(failover_command)
main.add_command(disks_command)
main.add_command(check_command)
main.add_command(tier_command)
main.add_command(fuzz_command)
main.add_command(leaks_command)

if __name__ == "__main__":
    main()
