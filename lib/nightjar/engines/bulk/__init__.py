"""Exact and approximate top-k for all users at once, faster than an fp32 matrix product of all scores.

`build_shard`, `open_shard` and `search_shards` take and return what their namesakes in `engines.index` do, so
a stage chooses between them by the factory: "exact" here, a FAISS string there. Of the search engines only
this one imports numba and torch.
"""

from nightjar.engines.bulk.search import search_shards
from nightjar.engines.bulk.shard import BulkShard, build_shard, open_shard

__all__ = ["BulkShard", "build_shard", "open_shard", "search_shards"]
