"""That the figures of federation and ledger are of what they say they are of; what they come to is not for tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import fleet, reviewer
from bench.figures import FLEET_SPECS, OURS, SPECS, Samples, Spec, figures
from bench.ledger import alone, leaves_in
from bench.load import NotMeasured
from bench.report import targets

PROMISED = {
    "shared_p50",
    "shared_p99",
    "fresh_region_10k",
    "isolated_writes",
    "ledger_writes",
    "ledger_switches",
    "verify_1m_leaves",
}


def test_every_promised_figure_is_there_with_a_target_and_named_once():
    assert {spec.name for spec in FLEET_SPECS if spec.target is not None} >= PROMISED
    names = [spec.name for spec in [*SPECS, *FLEET_SPECS]]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("at_least", "target", "reached"), [(False, 2.0, True), (False, 1.9, False), (True, 2.0, True), (True, 2.1, False)]
)
def test_a_target_is_reached_or_not(at_least: bool, target: float, reached: bool):
    samples = Samples()
    samples.add(OURS, "x", 1.0, 2.0, 3.0)
    [figure] = figures(samples, [Spec("a", "ms", "x", target=target, at_least=at_least)])
    assert (figure["target"], figure["reached"]) == (target, reached)


def test_a_target_may_be_measured_in_the_same_run():
    samples = Samples()
    spec = Spec("a", "ms", "x", target="bound")
    samples.add(OURS, "x", 3.0)
    [figure] = figures(samples, [spec])
    assert (figure["target"], figure["reached"]) == (None, None)
    samples.add(OURS, "bound", 4.0)
    [figure] = figures(samples, [spec])
    assert (figure["target"], figure["reached"]) == (4.0, True)


def test_a_high_quantile_is_one_of_the_values():
    samples = Samples()
    samples.add(OURS, "x", *map(float, range(200, 0, -1)))
    [half, most, nearly] = figures(samples, [Spec("a", "ms", "x", quantile=q) for q in (0.5, 0.99, 0.999)])
    assert (half["ours"], most["ours"], nearly["ours"]) == (100.5, 198.0, 200.0)


def test_what_was_not_measured_is_told_as_absent():
    made = figures(Samples(), FLEET_SPECS)
    assert all(figure["ours"] is None and figure["reached"] is None for figure in made)
    assert json.loads(json.dumps(made)) == made
    assert targets(made).row_count == len(made)


async def test_the_ledger_is_there_in_every_other_turn(tmp_path: Path):
    async with alone(tmp_path / "store") as node:
        sizes = []
        for ledger in (False, True, False, True):
            await node.rates(ledger=ledger, seconds=1.0)
            sizes.append(node.leaves)
    assert 0 == sizes[0] < sizes[1] == sizes[2] < sizes[3] == leaves_in(tmp_path / "store")


async def test_a_bundle_is_made_and_verified(tmp_path: Path):
    await reviewer.made(tmp_path, 25)
    found = await reviewer.verified(tmp_path)
    assert found.seconds > 0
    # Less than an interpreter needs would mean that another process was looked at.
    assert found.peak_mb > 5


async def test_a_bundle_that_is_not_found_good_is_not_measured(tmp_path: Path):
    await reviewer.made(tmp_path, 25)
    trust = tmp_path / "trust.toml"
    (tmp_path / "other").mkdir()
    await reviewer.made(tmp_path / "other", 1)
    trust.write_text((tmp_path / "other" / "trust.toml").read_text())
    with pytest.raises(NotMeasured, match="not proven: CHECKPOINT"):
        await reviewer.verified(tmp_path)
    trust.unlink()
    with pytest.raises(NotMeasured, match="could not be verified"):
        await reviewer.verified(tmp_path)


@pytest.mark.timeout(150)
async def test_a_fleet_is_filled_and_watched_and_cut(tmp_path: Path):
    count, link_s = 30, 0.01
    async with fleet.running(tmp_path, link_s=link_s) as regions:
        revision = await regions.fill(count)
        for abroad in (True, False):
            found = await regions.fresh(abroad=abroad, revision=revision, count=count)
            assert 0 <= found.copying_s <= found.seconds
        await regions.join()
        for each in await regions.shared(3):
            assert each.began < each.acknowledged
            assert each.arrived - each.began > link_s
        # Long enough for a machine that does much else to end one write.
        isolation = await regions.isolated(1.5)
        assert all(isolation)
