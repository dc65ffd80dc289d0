"""Servers run until the last test has."""

import pytest
from servers import valkey


@pytest.fixture(scope="session", autouse=True)
def _servers_end_with_the_run():
    yield
    valkey.stop_all()
