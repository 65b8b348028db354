import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from training_on_many import STEPS, make, optimiser_of, steps

from unrolling.sharding import _check_index, start

SCRIPT = Path(__file__).parent / "training_on_many.py"


def torchrun(ranks, *arguments):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(ranks),
        str(SCRIPT),
    ]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(("name", "way"), [("crate-tiny", "fsdp"), ("mita-deit-tiny", "ddp")])
def test_training_on_many_is_training_on_one_and_goes_on_on_another_number(name, way, tmp_path):
    alone = make(name)
    optimiser = optimiser_of(alone)
    for ranks, first in ((2, 0), (3, STEPS)):
        torchrun(ranks, name, way, tmp_path / "run", tmp_path / "weights.pt")
        steps(alone, optimiser, first, STEPS)
        many = torch.load(tmp_path / "weights.pt", weights_only=True)
        for key, value in alone.state_dict().items():
            torch.testing.assert_close(
                many[key], value, rtol=1e-8, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}"
            )
    _check_index(tmp_path / "run")


def test_an_index_that_names_other_things_is_not_read(tmp_path):
    with pytest.raises(ValueError, match=r"has no \.metadata"):
        _check_index(tmp_path)
    seen = tmp_path / "seen"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (seen,))

    (tmp_path / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="is not trusted"):
        _check_index(tmp_path)
    assert not seen.exists()


def test_an_index_of_more_than_tensors_is_not_read(tmp_path):
    """Other values would be unpickled."""
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process
        dcp.save({"weights": torch.ones(2)}, checkpoint_id=tmp_path / "tensors")
        dcp.save({"weights": torch.ones(2), "rate": 0.1}, checkpoint_id=tmp_path / "more")
    _check_index(tmp_path / "tensors")
    with pytest.raises(ValueError, match="more holds more than tensors"):
        _check_index(tmp_path / "more")


def test_a_process_without_a_rank_is_told_to_use_torchrun(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RuntimeError, match="run the script with torchrun"):
        start()
