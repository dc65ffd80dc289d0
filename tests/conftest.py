"""Failures of the conformance suite show the values that they compared; servers run until the last test has."""

import pytest
from servers import valkey

pytest.register_assert_rewrite(
    "sessiontree.stores.conformance",
    "sessiontree.stores.conformance_cases",
    "sessiontree.stores.conformance_tools",
)


@pytest.fixture(scope="session", autouse=True)
def _servers_end_with_the_run():
    yield
    valkey.stop_all()
