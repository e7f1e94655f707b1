import pytest

from tests.ledger.material import Desk


@pytest.fixture(scope="session")
def desk(tmp_path_factory):
    return Desk(tmp_path_factory.mktemp("desk"))
