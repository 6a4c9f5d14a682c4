import sys

from mnist_flax.run.command import main

sys.exit(main())
