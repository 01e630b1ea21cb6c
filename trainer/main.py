"""What torchrun and TorchX start: ``python -m trainer.main`` is ``twofold``."""

from trainer.cli import main

if __name__ == "__main__":
    main()
