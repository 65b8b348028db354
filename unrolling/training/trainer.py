"""Training: steps, evaluation, checkpoints, and going on from one as if nothing had happened."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from tqdm import tqdm

from .. import sharding
from ..models import Model
from .build import FrozenSegmenter, make_classifier, make_segmenter
from .checkpoint import fingerprint, load_training, save_training
from .data import IGNORE, Data, Splits, load_data
from .evaluate import evaluate
from .loader import Batch, Loader, mixing_of, normalise, seed_of
from .metrics import metric_of
from .optimise import clip_gradients_, learning_rate, make_optimiser
from .pretrained.cached import as_the_backbone_has_it, cached
from .regularise import SparseRate
from .run import Diverged, Job, RunFolder

__all__ = ["Parallel", "build", "load_job_data", "train"]

LINES_AN_EPOCH = 10


@dataclass(frozen=True)
class Parallel:
    """How a training runs, which its numbers do not depend on but for rounding: device, processes, compilation.

    way: "ddp" or "fsdp", of several processes. mesh: theirs, None on one. compiled: by torch.compile. quiet: without a bar.
    """

    device: str = "cpu"
    way: str = "ddp"
    mesh: Any = None
    compiled: bool = False
    quiet: bool = False

    @property
    def rank(self) -> int:
        """The number of this process."""
        return 0 if self.mesh is None else dist.get_rank()

    @property
    def world(self) -> int:
        """How many there are."""
        return 1 if self.mesh is None else dist.get_world_size()


def load_job_data(job: Job) -> Splits:
    """The data set of a job, with the recipe's options, normalised as its backbone's own images were."""
    found = load_data(job.data, job.root, task=job.task, **dict(job.recipe.data))
    return as_the_backbone_has_it(found, job.backbone)


def build(job: Job, data: Splits) -> nn.Module:
    """The network of a job, its first weights drawn by the job's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        if job.task == "classify":
            return make_classifier(str(job.model), data, job.recipe, **job.choices)
        return make_segmenter(str(job.decoder), job.backbone, data, job.recipe, frozen=job.frozen)


@dataclass
class _Position:
    """Where a training stands: steps done, and the sums since the last line."""

    step: int = 0
    loss: float = 0.0
    steps: int = 0
    best: float = -1.0
    history: dict[str, Any] = field(default_factory=dict)


def train(
    job: Job,
    folder: RunFolder,
    parallel: Parallel = Parallel(),
    *,
    data: Splits | None = None,
    stop_after: int | None = None,
) -> dict[str, Any]:
    """Trains to the end, from the folder's checkpoint if there is one; returns the final numbers, as in ``result.json``.

    Parameters
    ----------
        data: images of your own, in the place of those that the job's name stands for.
        stop_after: leave after so many steps in all, as a kill would: without a checkpoint, for tests.

    Raises
    ------
        ValueError for settings, data and folders that do not fit; Diverged where the loss is no number; OSError where
        nothing can be written. The last checkpoint stays as it is.
    """
    return _Training(job, folder, parallel, data).run(stop_after)


class _Training:
    def __init__(self, job: Job, folder: RunFolder, parallel: Parallel, data: Splits | None) -> None:
        self.job, self.folder, self.parallel, recipe = job, folder, parallel, job.recipe
        self.data = load_job_data(job) if data is None else data
        model = build(job, self.data)
        self.train_data, self.val_data, self.test_data = self._parts(model)
        self.loader = Loader(self.train_data, recipe, seed=job.seed, rank=parallel.rank, world=parallel.world)
        self.mixing = mixing_of(recipe, len(self.train_data.classes)) if job.task == "classify" else None
        self.regulariser = SparseRate(model) if recipe.regularise else None
        self.plain = model.to(parallel.device)
        self.model = self._wrapped(self.plain)
        self.optimiser = make_optimiser(self.model, recipe)
        self.average = {n: p.detach().clone() for n, p in self.model.named_parameters()} if recipe.ema else {}
        self.position = _Position()
        self.seconds, self.seen = 0.0, 0
        if parallel.rank == 0:
            begun = folder.open(job)
        if parallel.mesh is not None:
            dist.barrier()
            begun = folder.state.is_file()
        if begun:
            found = load_training(folder.state, self.model, self.optimiser, self.average)
            self.position = _Position(**found)
        if parallel.rank == 0:
            folder.rewind(self.position.step)

    def _parts(self, model: nn.Module) -> tuple[Data, Data, Data]:
        parts = (self.data.train, self.data.val, self.data.test)
        if not self.job.cache:
            return parts
        if not isinstance(model, FrozenSegmenter):
            raise ValueError("job: only a frozen backbone's features can be cached.")
        found = {id(part): cached(model, part) for part in parts}  # val and test may be the same
        return found[id(parts[0])], found[id(parts[1])], found[id(parts[2])]

    def _wrapped(self, model: nn.Module) -> nn.Module:
        p = self.parallel
        if self.regulariser is not None and (p.compiled or (p.mesh is not None and p.way == "fsdp")):
            raise ValueError(
                "regularise: the rate is read block by block, with whole bases: neither --compile nor fsdp; use ddp."
            )
        if p.mesh is not None:
            sharding.join_batch_norms_(model)
            if p.way == "fsdp":
                return sharding.sharded(model, p.mesh)
        if p.compiled:
            model.compile()
        return model if p.mesh is None else sharding.replicated(model, p.mesh)

    @property
    def total(self) -> int:
        return self.job.recipe.epochs * len(self.loader)

    def run(self, stop_after: int | None) -> dict[str, Any]:
        done = self.folder.result()
        if done is not None and self.position.step >= self.total:
            return done
        recipe, position, per_epoch = self.job.recipe, self.position, len(self.loader)
        with self._bar() as bar:
            while position.step < self.total:
                epoch, start = divmod(position.step, per_epoch)
                for batch in self.loader.batches(epoch, start):
                    began = time.perf_counter()
                    loss = self._step(batch)
                    self.seconds += time.perf_counter() - began
                    self._after_step(loss, bar)
                    if recipe.save_every and position.step % recipe.save_every == 0 and position.step % per_epoch:
                        self._save()
                    if stop_after is not None and position.step >= stop_after:
                        return {}
                self._after_epoch(bar)
        return self._finish()

    def _bar(self) -> Any:
        batch = self.job.recipe.batch
        hidden = self.parallel.quiet or self.parallel.rank > 0
        return tqdm(
            total=self.total * batch,
            initial=self.position.step * batch,
            unit=" images",
            disable=True if hidden else None,
            desc=self.folder.path.name,
            dynamic_ncols=True,
            smoothing=0.05,
        )

    def _step(self, batch: Batch) -> Tensor:
        """One step of the optimiser; returns the loss of the whole batch, over all processes."""
        recipe, step = self.job.recipe, self.position.step
        rate = learning_rate(recipe, step, len(self.loader))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        # Dropout and the like: by seed, step and process alone.
        torch.manual_seed(seed_of(self.job.seed, step, self.parallel.rank))
        self.model.train()
        self.optimiser.zero_grad(set_to_none=True)
        pieces = batch.pieces(recipe.accumulate)
        weight = self._weight(batch.targets)
        total = torch.zeros((), device=self.parallel.device)
        for number, piece in enumerate(pieces):
            with self._local(number < len(pieces) - 1):
                loss = self._loss(piece, weight, len(pieces))
                # DDP and FSDP take the mean over processes of what is a share of a sum here.
                (loss * self.parallel.world).backward()
            total += loss.detach()
        if self.parallel.mesh is not None:
            dist.all_reduce(total)
        if not bool(torch.isfinite(total)):
            raise Diverged(self._diverged(f"the loss is {float(total)} at step {step + 1} (learning rate {rate:.3g})"))
        if recipe.clip:
            clip_gradients_(self.model, recipe.clip)
        self.optimiser.step()
        for name, p in self.model.named_parameters() if self.average else ():
            self.average[name].lerp_(p.detach(), 1 - recipe.ema)
        return total

    def _local(self, more: bool) -> contextlib.AbstractContextManager[Any]:
        """Leaves the exchange of gradients to the last pass."""
        if more and isinstance(self.model, nn.parallel.DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _finite(self) -> bool:
        """Whether all weights are numbers: a loss can be one, and its gradient none."""
        parts = [p.to_local() if isinstance(p, DTensor) else p for p in self.model.parameters()]
        fine = torch.stack([part.detach().isfinite().all() for part in parts]).all().to(torch.int32)
        if self.parallel.mesh is not None:
            dist.all_reduce(fine, op=dist.ReduceOp.MIN)
        return bool(fine)

    def _diverged(self, what: str) -> str:
        state = self.folder.state
        kept = f"The checkpoint {state} is intact." if state.is_file() else "Nothing was saved yet."
        return f"{what}. {kept} Lower lr, or add warmup or clip, under another --out."

    def _weight(self, targets: Tensor) -> Tensor:
        """How many images or pixels the whole batch's loss is the mean of."""
        count = (targets != IGNORE).sum() if self.job.task == "segment" else torch.tensor(len(targets))
        count = count.to(self.parallel.device, torch.float64 if self.parallel.device == "cpu" else torch.float32)
        if self.parallel.mesh is not None:
            dist.all_reduce(count)
        return count.clamp_min(1).float()

    def _loss(self, piece: Batch, weight: Tensor, pieces: int) -> Tensor:
        """The share of the batch's loss that these images have."""
        recipe, device = self.job.recipe, self.parallel.device
        images, targets = normalise(piece.images, self.train_data, device), piece.targets.to(device)
        if self.mixing is not None:
            mates = None
            if piece.partners is not None:
                mates = normalise(piece.partners[0], self.train_data, device), piece.partners[1].to(device)
            images, targets = self.mixing(images, targets, mates, piece.uniforms)
        listening = self.regulariser or contextlib.nullcontext()
        kind = torch.device(device).type
        with listening, torch.autocast(kind, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            scores = self.model(images)
        scores = scores.float()
        if self.job.task == "segment":
            loss = F.cross_entropy(
                scores, targets, ignore_index=IGNORE, reduction="sum", label_smoothing=recipe.smoothing
            )
        elif recipe.loss == "binary":
            # as DeiT III has it: every class that is in a mixed image counts as present
            present = (targets > 0).float()
            loss = F.binary_cross_entropy_with_logits(scores, present, reduction="sum") / scores.shape[-1]
        else:
            loss = F.cross_entropy(scores, targets, reduction="sum")
        loss = loss / weight
        if self.regulariser is not None:
            loss = loss + recipe.regularise * self.regulariser.value() / (pieces * self.parallel.world)
        return loss

    def _after_step(self, loss: Tensor, bar: Any) -> None:
        p, recipe, per_epoch = self.position, self.job.recipe, len(self.loader)
        p.step, p.steps, p.loss = p.step + 1, p.steps + 1, p.loss + float(loss)
        self.seen += recipe.batch
        bar.update(recipe.batch)
        stretch = max(1, per_epoch // LINES_AN_EPOCH)
        if p.step % per_epoch % stretch == 0:
            mean = p.loss / p.steps
            self._log({"step": p.step, "loss": mean, "lr": learning_rate(recipe, p.step - 1, per_epoch)})
            p.loss, p.steps = 0.0, 0
            bar.set_postfix_str(f"loss {mean:.3f}" + "".join(f", {n} {v:.3f}" for n, v in p.history.items()))

    def _log(self, line: Mapping[str, Any]) -> None:
        if self.parallel.rank == 0:
            speed = {"images_per_second": round(self.seen / self.seconds, 1)} if self.seconds else {}
            self.folder.log({**line, **speed})

    def _after_epoch(self, bar: Any) -> None:
        p, headline = self.position, metric_of(self.val_data).headline
        found = self._evaluated(self.val_data)
        epoch = p.step // len(self.loader)
        self._log({"step": p.step, "epoch": epoch, "val": {n: v for n, v in found.items() if n != "classes"}})
        p.history, p.best = {headline: found[headline]}, max(p.best, found[headline])
        bar.set_postfix_str(f"epoch {epoch}, {headline} {found[headline]:.3f}")
        self._save()

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """The moving average in the place of the weights, where there is one."""
        kept = {}
        with torch.no_grad():
            for name, p in self.model.named_parameters() if self.average else ():
                kept[name] = p.detach().clone()
                p.copy_(self.average[name])
        yield
        with torch.no_grad():
            for name, p in self.model.named_parameters() if self.average else ():
                p.copy_(kept[name])

    def _evaluated(self, data: Data) -> dict[str, Any]:
        with self._averaged():
            inner = self.model.module if isinstance(self.model, nn.parallel.DistributedDataParallel) else self.model
            return evaluate(inner, data, self.job.recipe, device=self.parallel.device)

    def _save(self) -> None:
        if not self._finite():
            raise Diverged(self._diverged(f"weights are no numbers after step {self.position.step}"))
        save_training(self.folder.state, self.model, self.optimiser, vars(self.position), self.average)

    def _finish(self) -> dict[str, Any]:
        """The test's numbers, and the network itself."""
        found = self._evaluated(self.test_data)
        position, plain = self.position, self.plain
        result = {
            "test": found,
            "val": position.history,
            "best_val": position.best,
            "steps": position.step,
            "parameters": sum(p.numel() for p in plain.parameters() if p.requires_grad),
            "seconds": round(self.seconds, 2),
            "images_per_second": round(self.seen / self.seconds, 1) if self.seconds else None,
        }
        with self._averaged():
            self._write_model(result)
        return result

    def _write_model(self, result: dict[str, Any]) -> None:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        state = get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if self.parallel.rank == 0:
            whole = build(self.job, self.data)
            whole.load_state_dict(state)
            kept = whole.decoder if isinstance(whole, FrozenSegmenter) else whole
            if isinstance(kept, Model):
                kept.save_pretrained(self.folder.model)
                result["sha256"] = fingerprint(kept.state_dict())
            self.folder.finish(json.loads(json.dumps(result)))
        if self.parallel.mesh is not None:
            dist.barrier()


def local_device(name: str | None) -> str:
    """The device to train on: the one named, else a GPU where there is one."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: there is no CUDA device here; use cpu.")
    if name.startswith("cuda") and "LOCAL_RANK" in os.environ:
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return name
