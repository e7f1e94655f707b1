"""Options of gRPC are words that it does not check: a misspelt one is an option that was never set."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from grpc._cython import cygrpc

ROOT = Path(__file__).parents[1]
OPTION = re.compile(rb'"(grpc\.[a-z0-9_.]+)"')
USED = sorted({word for file in (ROOT / "controlplane").rglob("*.py") for word in OPTION.findall(file.read_bytes())})
PACKAGES = {b"grpc.health.v1."}


@pytest.fixture(scope="module")
def library():
    return Path(cygrpc.__file__).read_bytes()


@pytest.mark.parametrize("option", [each for each in USED if not each.startswith(tuple(PACKAGES))], ids=bytes.decode)
def test_grpc_knows_each_option(library, option):
    assert option + b"\0" in library


def test_it_would_not_know_another(library):
    assert USED
    assert b"grpc.http2.min_recv_ping_interval_without_data_ms\0" not in library
