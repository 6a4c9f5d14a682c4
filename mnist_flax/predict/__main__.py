import sys

from mnist_flax.predict.command import main

sys.exit(main())
