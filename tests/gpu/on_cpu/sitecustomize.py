"""What lets FSDP and ZeRO-2 train in processes on a CPU (gloo), so that everything around them can be tried without GPUs.

`tests.gpu.several --device cpu` puts this folder on the path of training; Python imports the file by its name. Nothing of
the project is replaced but the sentence that refuses FSDP without a GPU. Of the libraries:

* gloo, unlike NCCL, splits the tensor that it gathers into, and autograd forbids that to weights outside of no_grad
  (DeepSpeed's updates);
* accelerate 1.11.0 takes FSDP for GPUs alone: state.py AcceleratorState, utils/dataclasses.py __post_init__;
* torch 2.11's FSDP wants a device without a number, and moves gathered weights off the device before it frees them, which
  on a CPU moves nothing (fsdp/_state_dict_utils.py).
"""

from __future__ import annotations

import os
import sys


def gloo_may_gather() -> None:
    """Gather into weights as NCCL does."""
    import torch
    import torch.distributed

    gather = torch.distributed.all_gather_into_tensor
    torch.distributed.all_gather_into_tensor = lambda *a, **k: torch.no_grad()(gather)(*a, **k)


def accelerate_takes_fsdp() -> None:
    """FSDP for processes on CPUs as for those on GPUs."""
    from accelerate import state
    from accelerate.utils import dataclasses

    begin, end = state.AcceleratorState.__init__, dataclasses.FullyShardedDataParallelPlugin.__post_init__

    def init(self, *args, fsdp_plugin=None, **words) -> None:
        begin(self, *args, fsdp_plugin=fsdp_plugin, **words)
        if fsdp_plugin is not None and self.distributed_type == state.DistributedType.MULTI_CPU:
            self.distributed_type = state.PartialState._shared_state["distributed_type"] = state.DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin

    def post_init(self) -> None:
        # both processes load the same weights; sending them about is for GPUs alone
        self.sync_module_states, os.environ["FSDP_SYNC_MODULE_STATES"] = False, "false"
        end(self)

    state.AcceleratorState.__init__ = init
    dataclasses.FullyShardedDataParallelPlugin.__post_init__ = post_init


def fsdp_stays_on_the_cpu() -> None:
    """FSDP on "cpu", its gathered weights copied instead of moved."""
    import torch
    from torch.distributed.fsdp import FullyShardedDataParallel

    begin, chosen = FullyShardedDataParallel.__init__, FullyShardedDataParallel.set_state_dict_type

    def init(self, *args, **words) -> None:
        if words.get("device_id") is not None:
            words["device_id"] = torch.device("cpu")
        begin(self, *args, **words)

    def set_state_dict_type(module, kind, weights=None, optimizer=None):
        for settings in (weights, optimizer):
            if settings is not None:
                settings.offload_to_cpu = False
        return chosen(module, kind, weights, optimizer)

    FullyShardedDataParallel.__init__ = init
    FullyShardedDataParallel.set_state_dict_type = staticmethod(set_state_dict_type)


if any(word.endswith("train_adapter") for word in sys.orig_argv):
    from scripts.lib import llamafactory_args

    refuse = llamafactory_args.check_distributed
    llamafactory_args.check_distributed = lambda distributed, use_cpu: refuse(distributed, False)
if "LOCAL_RANK" in os.environ:  # one of torchrun's
    gloo_may_gather()
    accelerate_takes_fsdp()
    fsdp_stays_on_the_cpu()
