"""What torchrun and TorchX start: ``python -m trainer.main`` is ``twofold``."""

import os

from trainer.launch.process import end_with_launcher

if __name__ == "__main__":
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun's
        end_with_launcher()
    from trainer.cli import main

    main()
