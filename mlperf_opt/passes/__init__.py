"""The passes, by name in `PASSES`. To add one: its file here, conf/passes/<name>.yaml, and its test (docs/add_a_pass.md)."""

from __future__ import annotations

from mlperf_opt.passes.base import Pass, PassContext, PassResult
from mlperf_opt.passes.cluster import Cluster
from mlperf_opt.passes.export import Export
from mlperf_opt.passes.finetune import Finetune
from mlperf_opt.passes.fuse import Fuse
from mlperf_opt.passes.kv_cache import KvCache
from mlperf_opt.passes.lowrank import Lowrank
from mlperf_opt.passes.profile import Profile
from mlperf_opt.passes.prune import Prune
from mlperf_opt.passes.quant import Quant
from mlperf_opt.passes.tidy import Tidy

PASSES: dict[str, type[Pass]] = {
    "profile": Profile,
    "quant": Quant,
    "prune": Prune,
    "lowrank": Lowrank,
    "cluster": Cluster,
    "finetune": Finetune,
    "tidy": Tidy,
    "kv_cache": KvCache,
    "fuse": Fuse,
    "export": Export,
}

__all__ = ["PASSES", "KvCache", "Pass", "PassContext", "PassResult"]
