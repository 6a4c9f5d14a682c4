import sys

from mnist_flax.export.command import main

sys.exit(main())
