import sys

from mtld_core.train.job import main

sys.exit(main())
