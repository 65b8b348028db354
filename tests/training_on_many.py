"""A training script for torchrun: a few steps, saved, or gone on from; the parameters are compared by the test."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from unrolling.models import create
from unrolling.sharding import finish, load_state, replicated, save_state, sharded, start

BATCH, STEPS = 6, 3


def data(step):
    generator = torch.Generator().manual_seed(100 + step)
    images = torch.randn(BATCH, 3, 16, 16, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, 5, (BATCH,), generator=generator)


def make(name):
    torch.manual_seed(0)
    return create(name, img_size=16, patch_size=4, depth=2, embed_dim=24, num_heads=3, num_classes=5).double()


def optimiser_of(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def steps(model, optimiser, first, count, rank=0, ranks=1):
    for step in range(first, first + count):
        images, labels = (part.chunk(ranks)[rank] for part in data(step))
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()


def train(mesh, name, way, folder, result):
    rank, ranks = dist.get_rank(), dist.get_world_size()
    model = {"ddp": replicated, "fsdp": sharded}[way](make(name), mesh)
    optimiser = optimiser_of(model)
    first = load_state(folder, model, optimiser) if Path(folder).is_dir() else 0
    steps(model, optimiser, first, STEPS, rank, ranks)
    save_state(folder, model, optimiser, first + STEPS)
    whole = {
        key: getattr(value, "full_tensor", lambda value=value: value)() for key, value in model.state_dict().items()
    }
    if rank == 0:
        torch.save({key.removeprefix("module."): value for key, value in whole.items()}, result)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(start(), *sys.argv[1:])
    finish()
