"""Many images on many machines: planned as shards, computed by the workers of a Ray cluster. Needs the extra `ray`."""

from dipdefense.distributed.cluster import Cluster
from dipdefense.distributed.purification import purify_shards
from dipdefense.distributed.shards import Failure

__all__ = ["Cluster", "Failure", "purify_shards"]
