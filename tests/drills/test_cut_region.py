"""What a node does with a region that a drill cut it off from: nothing, in either direction; with others as usual."""

import pytest

from controlplane.errors import Unavailable
from controlplane.v1 import federation_pb2 as wire
from controlplane.v1.records_pb2 import GLOBAL
from tests.federation.fleet import CENTRAL, EAST, WEST, Spy, running
from tests.federation.test_links import refused
from tests.server.regions import flag, until


async def test_nothing_passes_until_it_heals_and_then_everything_that_was_missed(tmp_path):
    async with running(tmp_path, eu_west=1, us_east=1, eu_central=1) as fleet:
        await fleet.settled()
        links = fleet[EAST].member.federation.links
        links.sever([WEST])
        await until(lambda: fleet[EAST].link(WEST).state == fleet[WEST].link(EAST).state == "down")
        assert "drill" in fleet[EAST].link(WEST).reason
        assert fleet[EAST].link(CENTRAL).state == fleet[WEST].link(CENTRAL).state == "up"
        async with fleet.peer(WEST, EAST) as peer:
            for method in ("Forward", "Cosign"):
                with pytest.raises(Unavailable) as raised:
                    await peer.call(method, b"", service="Federation")
                assert raised.value.reason == "REGION_CUT_OFF"
            error = await refused(Spy(fleet, WEST, EAST, GLOBAL, peer, revision=1))
            assert (type(error), error.reason) == (Unavailable, "REGION_CUT_OFF")
        with pytest.raises(Unavailable):
            await links.cosign(WEST, wire.CosignRequest())
        async with fleet.caller(WEST) as at_home, fleet.caller(EAST) as maria:
            await at_home.call("SetFlag", flag("meanwhile"))
            await until(lambda: fleet.copied(WEST, CENTRAL, GLOBAL))
            with pytest.raises(Unavailable):
                await maria.call("SetFlag", flag("x", partition=f"{WEST}.prod.global"))
        assert not fleet.copied(WEST, EAST, GLOBAL)
        links.sever([])
        await until(lambda: fleet.copied(WEST, EAST, GLOBAL))
        await until(lambda: fleet[EAST].link(WEST).state == fleet[WEST].link(EAST).state == "up")
