"""``python -m unrolling.training`` is ``unroll``; under torchrun: ``torchrun --nproc-per-node 2 -m unrolling.training …``."""

from .command import main

if __name__ == "__main__":
    raise SystemExit(main())
