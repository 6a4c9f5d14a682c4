from mnist_flax.run.command import main

raise SystemExit(main())
