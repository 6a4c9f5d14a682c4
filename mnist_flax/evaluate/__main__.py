from mnist_flax.evaluate.command import main

raise SystemExit(main())
