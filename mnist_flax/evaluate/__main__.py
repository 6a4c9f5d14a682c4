import sys

from mnist_flax.evaluate.command import main

sys.exit(main())
