"""Failures of the conformance suite show the values that they compared."""

import pytest

pytest.register_assert_rewrite(
    "sessiontree.stores.conformance",
    "sessiontree.stores.conformance_cases",
    "sessiontree.stores.conformance_tools",
)
