"""The cluster and the files of the tests of locality."""

from tests.unit.locality.conftest import client, cluster, dataset

__all__ = ["client", "cluster", "dataset"]
