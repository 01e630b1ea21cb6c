"""``python -m trainer.doctor``: works where the command line cannot be imported."""

import sys

from trainer.doctor.checks import main

sys.exit(main())
