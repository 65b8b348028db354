"""Training on many processes: DDP or FSDP2 on a device mesh, and checkpoints that another number of processes can go on from.

Start the same script on every process, ``torchrun --nproc-per-node 2 train.py``; in it::

    def train(mesh):
        model = sharded(create("cbt-tiny"), mesh)    # or replicated(...)
        optimiser = torch.optim.AdamW(model.parameters())
        step = load_state("run", model, optimiser) if Path("run").is_dir() else 0
        ...                                          # each process its part of every batch
        save_state("run", model, optimiser, step)

    train(start())                                   # joins the processes
    finish()                                         # and leaves them
"""

from __future__ import annotations

import gc
import io
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from .kernels.together import Shard, sum_over

__all__ = [
    "JointBatchNorm2d",
    "finish",
    "join_batch_norms_",
    "load_state",
    "replicated",
    "save_state",
    "sharded",
    "start",
]

STEP = "step"


def start(device: str = "cpu") -> DeviceMesh:
    """Joins the processes that ``torchrun`` has started, by gloo on CPUs and NCCL on GPUs; returns their mesh, ``("data",)``.

    Raises
    ------
        RuntimeError where the process was not started by torchrun.
    """
    if "RANK" not in os.environ:
        raise RuntimeError(
            "start: this process has no rank; run the script with torchrun --nproc-per-node N script.py."
        )
    if device != "cpu":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        dist.init_process_group("gloo" if device == "cpu" else "nccl")
    return init_device_mesh(device, (dist.get_world_size(),), mesh_dim_names=("data",))


def finish() -> None:
    """Waits for all processes and leaves them; call it when the function that held the model has returned.

    A process that ends while a model or a mesh still holds its group can abort in gloo's destructor.
    """
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def replicated(model: nn.Module, mesh: DeviceMesh) -> DistributedDataParallel:
    """The model on every process, gradients averaged (DDP).

    Batch normalisation (in CBT's stem) takes the statistics of each process's part, unless :func:`join_batch_norms_` has
    made them those of all.
    """
    return DistributedDataParallel(model, process_group=mesh.get_group())


def sharded(model: nn.Module, mesh: DeviceMesh, units: tuple[str, ...] = ("blocks",)) -> nn.Module:
    """The model's parameters shared out among the processes (FSDP2), gathered a unit at a time, gradients averaged.

    Parameters
    ----------
        units: names of the module lists whose elements are gathered one by one; what is in none of them is one unit more.
        Elements must be called as modules: a list whose parts are used from outside belongs in no unit.

    Parameters of a single number (the step of a layer) cannot be shared out: every process keeps them, gradients averaged.
    """
    from torch.distributed.fsdp import fully_shard

    single = {p for p in model.parameters() if p.ndim == 0}
    for p in single:
        p.register_post_accumulate_grad_hook(_averaging(mesh))
    # The argument is newer than torch 2.6, and not needed without such parameters.
    ignored: dict[str, Any] = {"ignored_params": single} if single else {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] in units:
            for element in module:
                fully_shard(element, mesh=mesh, **ignored)
    return cast(nn.Module, fully_shard(model, mesh=mesh, **ignored))


def _averaging(mesh: DeviceMesh) -> Callable[[Tensor], None]:
    """Averages a parameter's gradient over the processes, each time that something was added to it."""

    def average(p: Tensor) -> None:
        if p.grad is not None:
            dist.all_reduce(p.grad, group=mesh.get_group())
            p.grad /= dist.get_world_size(mesh.get_group())

    return average


class JointBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation by the statistics of all processes' parts, differentiated through; on CPUs and GPUs alike.

    Parts must be equally large, as they are where a batch is shared equally. Elsewhere than in training on several
    processes it is the plain one.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(batch, channels, H, W)``, every channel normalised over batch, rows, columns and processes."""
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        if not self.training or ranks == 1:
            return super().forward(x)
        count = x.numel() // x.shape[1]
        shard = Shard((count,) * ranks, dist.get_rank())
        view = (1, -1, 1, 1)
        mean = sum_over(x.sum((0, 2, 3)), shard) / shard.total
        centred = x - mean.view(view)
        variance = sum_over(centred.square().sum((0, 2, 3)), shard) / shard.total
        self._remember(mean.detach(), variance.detach() * (shard.total / max(1, shard.total - 1)))
        normal = centred * (variance + self.eps).rsqrt().view(view)
        return normal if self.weight is None else normal * self.weight.view(view) + self.bias.view(view)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


def join_batch_norms_(model: nn.Module) -> nn.Module:
    """Makes every batch norm of a model a :class:`JointBatchNorm2d`, in place; names, parameters and statistics stay."""
    for module in model.modules():
        for name, child in list(module.named_children()):
            if type(child) is nn.BatchNorm2d:
                joint = JointBatchNorm2d(
                    child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
                )
                joint.__dict__.update(child.__dict__)
                setattr(module, name, joint)
    return model


def save_state(folder: str | os.PathLike[str], model: nn.Module, optimiser: torch.optim.Optimizer, step: int) -> None:
    """Writes the parameters, the optimiser's tensors and the number of steps taken, every process its part.

    Only tensors are written: learning rates and the like are the script's own. What was in the folder stays until the
    new state is complete.
    """
    import torch.distributed.checkpoint as dcp

    folder = Path(folder)
    partial, old = (folder.with_name(folder.name + ending) for ending in (".part", ".old"))
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
    dist.barrier()
    dcp.save(_state(model, optimiser, step), checkpoint_id=os.fspath(partial))
    dist.barrier()
    if dist.get_rank() == 0:
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    dist.barrier()


def load_state(folder: str | os.PathLike[str], model: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """Reads what :func:`save_state` wrote, by however many processes, in place; returns the number of steps taken.

    Raises
    ------
        ValueError for a folder that is no such checkpoint, or whose index names anything but tensors.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict

    _check_index(Path(folder))
    state = _state(model, optimiser, 0)
    dcp.load(state, checkpoint_id=os.fspath(folder))
    set_model_state_dict(model, state["model"])
    options = _flat()
    whole = _optimiser_state(model, optimiser) | state["optimiser"]
    set_optimizer_state_dict(model, optimiser, whole, options=options)
    return int(state[STEP])


def _flat() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(flatten_optimizer_state_dict=True)


def _optimiser_state(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    return dict(get_optimizer_state_dict(model, optimiser, options=_flat()))


def _state(model: nn.Module, optimiser: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    tensors = {k: v for k, v in _optimiser_state(model, optimiser).items() if isinstance(v, Tensor)}
    return {"model": get_model_state_dict(model), "optimiser": tensors, STEP: torch.tensor(step)}


class _Index(pickle.Unpickler):
    """Reads a checkpoint's index if it names nothing but the index's own classes: nothing in it is called otherwise."""

    def find_class(self, module: str, name: str) -> Any:
        """The class, where it is one of those that an index of tensors needs."""
        plain = (module == "torch" and name in ("Size", "device", "strided")) or module == "collections"
        torch_own = module.startswith("torch.distributed.checkpoint.") or module == "torch.serialization"
        if plain or torch_own or (module, name) in (("pathlib", "PosixPath"), ("torch._utils", "_rebuild_device")):
            return super().find_class(module, name)
        if module == "torch" and isinstance(
            getattr(torch, name, None), (torch.dtype, torch.layout, torch.memory_format)
        ):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


def _check_index(folder: Path) -> None:
    index = folder / ".metadata"
    if not index.is_file():
        raise ValueError(f"load_state: {folder.name} has no .metadata: it is no checkpoint of save_state.")
    try:
        found = _Index(io.BytesIO(index.read_bytes())).load()
        kinds = {type(entry).__name__ for entry in found.state_dict_metadata.values()}
    except (pickle.UnpicklingError, AttributeError, EOFError, ImportError, IndexError, ValueError) as problem:
        raise ValueError(f"load_state: the index of {folder.name} is not trusted: it names {problem}.") from None
    if kinds - {"TensorStorageMetadata"}:
        raise ValueError(
            f"load_state: {folder.name} holds more than tensors ({', '.join(sorted(kinds))}); nothing is read."
        )
