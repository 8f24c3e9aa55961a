"""What the tests of the service share: an embedded catalog, for reading only."""

import pytest
from embedded_catalog import embedded_catalog


@pytest.fixture(scope="session")
def catalog(tmp_path_factory):
    """(config, vectors, features, edges) of a catalog with a checkpoint and its export."""
    return embedded_catalog(tmp_path_factory.mktemp("served"))
