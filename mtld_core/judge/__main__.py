import sys

from mtld_core.judge.checkpoint import main

sys.exit(main())
